// Prints what node-postgres and its pool make of each answer:
// CLIENT|ANSWER|what was raised|its SQLSTATE|what the next use makes of it|statements.
// Arguments: the ports of the server and of who controls it.
"use strict";
const net = require("net");
const readline = require("readline");
const { Client, Pool } = require("pg");

const [port, controlPort] = process.argv.slice(2).map(Number);
const options = { host: "127.0.0.1", port, user: "postgres", database: "postgres", ssl: false };

const controller = net.connect(controlPort, "127.0.0.1");
const lines = readline.createInterface({ input: controller })[Symbol.asyncIterator]();
async function control(line) {
  controller.write(line + "\n");
  return (await lines.next()).value;
}

const pool = new Pool({ ...options, max: 1 });
pool.on("error", () => {}); // without it, an idle client that is told ends the program

async function session(work) {
  const client = await pool.connect();
  client.on("error", () => {}); // the same for one that waits within a transaction
  try {
    await client.query("BEGIN");
    await work(client);
    await client.query("COMMIT");
    client.release();
  } catch (e) {
    client.release(e);
    throw e;
  }
}

async function outcome(work) {
  try {
    await work();
    return ["works", ""];
  } catch (e) {
    return [e.constructor.name, e.code || ""];
  }
}

const ask = () => session(c => c.query("SELECT 1"));
const struck = () => session(c => c.query("SELECT 'strike'"));
const connect = async () => {
  const client = new Client(options);
  await client.connect();
  await client.end();
};

const answers = {
  idle: async () => { await ask(); await control("strike idle"); await ask(); },
  waiting: () => session(async c => {
    await c.query("SELECT 1");
    await control("strike waiting");
    await c.query("SELECT 'strike'");
  }),
  statement: struck,
  commit: struck,
  close: struck,
  connect,
};

(async () => {
  for (const [answer, work] of Object.entries(answers)) {
    await ask();
    await control("arm " + answer);
    const raised = await outcome(work);
    const heard = await control("heard");
    const [next] = await outcome(answer === "connect" ? connect : ask);
    console.log(["node-postgres pool", answer, ...raised, next, heard].join("|"));
  }
  process.exit(0);
})();
