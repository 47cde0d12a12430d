// Tries node-postgres and its pool on the server that PGHOST, PGUSER and so on
// name. Prints "ok NAME" or "FAILED NAME: why" for each check.
"use strict";
const assert = require("assert");
const fs = require("fs");
const { Client, Pool } = require("pg");
const Cursor = require("pg-cursor");

const ca = process.env.PGSSLROOTCERT;
const options = ca ? { ssl: { ca: fs.readFileSync(ca), rejectUnauthorized: true } } : {};

async function session(work) {
  const client = new Client(options);
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

const one = async (client, text, ...values) => Object.values((await client.query(text, values)).rows[0])[0];

// Copy is a query that copies in what it is given, and keeps what is copied out.
class Copy {
  constructor(text, input) {
    Object.assign(this, { text, input, output: [] });
    this.done = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
  }
  submit(connection) { connection.query(this.text); }
  handleCopyInResponse(connection) {
    connection.sendCopyFromChunk(this.input);
    connection.endCopyFrom();
  }
  handleCopyData(message) { this.output.push(Buffer.from(message.chunk)); } // it is used again
  handleCommandComplete() {}
  handleError(error) { this.reject(error); }
  handleReadyForQuery() { this.resolve(Buffer.concat(this.output)); }
}

const checks = {
  "connect": () => session(async c => assert.equal(await one(c, "SELECT 1"), 1)),

  "a failed statement leaves the session whole": () => session(async c => {
    await assert.rejects(c.query("SELECT 1/0"), { code: "22012" });
    assert.equal(await one(c, "SELECT 2"), 2);
  }),

  "prepared statements": () => session(async c => {
    for (let i = 0; i < 200; i++) {
      const { rows } = await c.query({ name: "twice", text: "SELECT $1::int * 2 AS n", values: [i] });
      assert.equal(rows[0].n, 2 * i);
    }
  }),

  "queries without waiting": () => session(async c => {
    const all = Array.from({ length: 1000 }, (_, i) => one(c, "SELECT $1::int", i));
    assert.deepEqual(await Promise.all(all), Array.from({ length: 1000 }, (_, i) => i));
  }),

  "COPY in and out": () => session(async c => {
    const lines = Buffer.from(Array.from({ length: 100000 }, (_, i) => i + "\n").join(""));
    await c.query("CREATE TEMP TABLE t (n int)");
    const into = c.query(new Copy("COPY t FROM STDIN", lines));
    await into.done;
    assert.equal(await one(c, "SELECT count(*)::int FROM t"), 100000);
    const out = c.query(new Copy("COPY t TO STDOUT"));
    assert(lines.equals(await out.done));
  }),

  "notify": () => session(listener => session(async other => {
    await listener.query("LISTEN news");
    const heard = new Promise(resolve => listener.once("notification", resolve));
    await other.query("NOTIFY news, 'hello'");
    assert.equal((await heard).payload, "hello");
  })),

  "cancel": () => session(c => session(async other => {
    const running = assert.rejects(c.query("SELECT pg_sleep(60)"), { code: "57014" });
    const asleep = "SELECT wait_event IS NOT DISTINCT FROM 'PgSleep' FROM pg_stat_activity WHERE pid = $1";
    for (const end = Date.now() + 20000; !await one(other, asleep, c.processID);) assert(Date.now() < end, "it does not run");
    // Its own cancel knows no TLS; the key is good for a plain connection, too.
    const messenger = new Client({ ...options, ssl: false });
    messenger.cancel(c, c.activeQuery);
    await running;
    assert.equal(await one(c, "SELECT 1"), 1);
  })),

  "100 MB result, at once and by a cursor": () => session(async c => {
    const text = "SELECT repeat('x', 1000) AS s FROM generate_series(1, 100000)";
    const { rows } = await c.query(text);
    assert.equal(rows.reduce((sum, row) => sum + row.s.length, 0), 1e8);
    const cursor = c.query(new Cursor(text));
    let sum = 0;
    for (let some; (some = await cursor.read(1000)).length;) sum += some.reduce((n, row) => n + row.s.length, 0);
    assert.equal(sum, 1e8);
    await cursor.close();
  }),

  "10 MB parameter and value": () => session(async c => {
    const data = Buffer.alloc(10e6, "0123456789");
    assert(data.equals(await one(c, "SELECT $1::bytea", data)));
  }),

  "pool": async () => {
    const pool = new Pool({ ...options, max: 4 });
    const all = Array.from({ length: 400 }, (_, i) => one(pool, "SELECT $1::int", i));
    assert.equal((await Promise.all(all)).reduce((a, b) => a + b), 400 * 399 / 2);
    await pool.end();
  },
};

(async () => {
  for (const [name, run] of Object.entries(checks)) {
    try {
      await run();
      console.log("ok", name);
    } catch (e) {
      process.exitCode = 1;
      console.log(`FAILED ${name}: ${e}`.replace(/\s*\n\s*/g, "; ").slice(0, 500));
    }
  }
})();
