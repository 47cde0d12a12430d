import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.Callable;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;

/**
 * Tries pgjdbc and HikariCP on the server that PGHOST, PGUSER and so on name.
 * Prints "ok NAME" or "FAILED NAME: why" for each check.
 */
public class Jdbc {
    interface Check { void run() throws Exception; }

    static final Map<String, Check> checks = new LinkedHashMap<>();

    static String env(String name) { return System.getenv().getOrDefault(name, ""); }

    static String url() { return "jdbc:postgresql://" + env("PGHOST") + ":" + env("PGPORT") + "/" + env("PGDATABASE"); }

    static Properties options() {
        Properties p = new Properties();
        p.setProperty("user", env("PGUSER"));
        p.setProperty("password", env("PGPASSWORD"));
        p.setProperty("sslmode", env("PGSSLMODE"));
        if (!env("PGSSLROOTCERT").isEmpty()) p.setProperty("sslrootcert", env("PGSSLROOTCERT"));
        return p;
    }

    static Connection connect() throws SQLException { return DriverManager.getConnection(url(), options()); }

    static void is(Object got, Object want) {
        if (!got.equals(want)) throw new AssertionError("got " + got + ", want " + want);
    }

    static String one(Connection c, String query, Object... values) throws SQLException {
        try (PreparedStatement s = c.prepareStatement(query)) {
            for (int i = 0; i < values.length; i++) s.setObject(i + 1, values[i]);
            try (ResultSet r = s.executeQuery()) {
                r.next();
                return r.getString(1);
            }
        }
    }

    static void execute(Connection c, String text) throws SQLException {
        try (Statement s = c.createStatement()) { s.execute(text); }
    }

    static void fails(String state, Check check) throws Exception {
        try {
            check.run();
        } catch (SQLException e) {
            is(e.getSQLState(), state);
            return;
        }
        throw new AssertionError("no error " + state);
    }

    /** sum reads strings, and returns how long they are together. */
    static long sum(Connection c, String query, int fetchSize) throws SQLException {
        try (Statement s = c.createStatement()) {
            s.setFetchSize(fetchSize);
            long sum = 0;
            try (ResultSet r = s.executeQuery(query)) {
                while (r.next()) sum += r.getString(1).length();
            }
            return sum;
        }
    }

    static void cancel() throws Exception {
        try (Connection c = connect(); Connection other = connect(); Statement s = c.createStatement()) {
            int pid = c.unwrap(PGConnection.class).getBackendPID();
            Future<Void> running = Executors.newSingleThreadExecutor(Jdbc::daemon).submit(() -> {
                fails("57014", () -> s.execute("SELECT pg_sleep(60)"));
                return null;
            });
            long end = System.nanoTime() + 20_000_000_000L;
            while (!"PgSleep".equals(one(other, "SELECT wait_event FROM pg_stat_activity WHERE pid = ?", pid)))
                if (System.nanoTime() > end) throw new AssertionError("it does not run");
            s.cancel();
            running.get();
            is(one(c, "SELECT 1"), "1");
        }
    }

    static Thread daemon(Runnable r) {
        Thread t = new Thread(r);
        t.setDaemon(true);
        return t;
    }

    static void copy() throws Exception {
        StringBuilder lines = new StringBuilder();
        for (int i = 0; i < 100_000; i++) lines.append(i).append('\n');
        try (Connection c = connect()) {
            execute(c, "CREATE TEMP TABLE t (n int)");
            CopyManager copy = c.unwrap(PGConnection.class).getCopyAPI();
            is(copy.copyIn("COPY t FROM STDIN", new ByteArrayInputStream(lines.toString().getBytes())), 100_000L);
            ByteArrayOutputStream out = new ByteArrayOutputStream();
            copy.copyOut("COPY t TO STDOUT", out);
            is(out.toString(), lines.toString());
            fails("22P02", () -> copy.copyIn("COPY t FROM STDIN", new ByteArrayInputStream("no number\n".getBytes())));
            is(one(c, "SELECT count(*) FROM t"), "100000");
        }
    }

    static void batch() throws Exception {
        try (Connection c = connect()) {
            execute(c, "CREATE TEMP TABLE t (n int)");
            try (PreparedStatement s = c.prepareStatement("INSERT INTO t VALUES (?)")) {
                for (int i = 0; i < 5000; i++) {
                    s.setInt(1, i);
                    s.addBatch();
                }
                is(Arrays.stream(s.executeBatch()).sum(), 5000);
            }
            is(one(c, "SELECT sum(n) FROM t"), "12497500");
        }
    }

    static void pool() throws Exception {
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl(url());
        config.setDataSourceProperties(options());
        config.setMaximumPoolSize(4);
        try (HikariDataSource pool = new HikariDataSource(config)) {
            List<Callable<Integer>> work = new ArrayList<>();
            for (int i = 0; i < 400; i++) {
                int n = i;
                work.add(() -> {
                    try (Connection c = pool.getConnection()) { return Integer.parseInt(one(c, "SELECT ?", n)); }
                });
            }
            int sum = 0;
            for (Future<Integer> f : Executors.newFixedThreadPool(8, Jdbc::daemon).invokeAll(work)) sum += f.get();
            is(sum, 400 * 399 / 2);
        }
    }

    static {
        checks.put("connect", () -> {
            try (Connection c = connect()) { is(one(c, "SELECT 1"), "1"); }
        });
        checks.put("a failed statement leaves the session whole", () -> {
            try (Connection c = connect()) {
                fails("22012", () -> one(c, "SELECT 1/0"));
                is(one(c, "SELECT 2"), "2");
            }
        });
        checks.put("transactions and savepoints", () -> {
            try (Connection c = connect()) {
                c.setAutoCommit(false);
                execute(c, "CREATE TEMP TABLE t (n int)");
                var before = c.setSavepoint();
                execute(c, "INSERT INTO t VALUES (1)");
                c.rollback(before);
                c.commit();
                is(one(c, "SELECT count(*) FROM t"), "0");
            }
        });
        checks.put("prepared statements", () -> { // by name from the fifth use on
            try (Connection c = connect(); PreparedStatement s = c.prepareStatement("SELECT ?::int * 2")) {
                for (int i = 0; i < 200; i++) {
                    s.setInt(1, i);
                    try (ResultSet r = s.executeQuery()) {
                        r.next();
                        is(r.getInt(1), 2 * i);
                    }
                }
                is(one(c, "SELECT count(*) FROM pg_prepared_statements WHERE statement ~ '\\* 2'"), "1");
            }
        });
        checks.put("batch", Jdbc::batch);
        checks.put("COPY in and out", Jdbc::copy);
        checks.put("notify", () -> {
            try (Connection listener = connect(); Connection other = connect()) {
                execute(listener, "LISTEN news");
                execute(other, "NOTIFY news, 'hello'");
                PGNotification[] heard = listener.unwrap(PGConnection.class).getNotifications(20_000);
                is(heard.length, 1);
                is(heard[0].getParameter(), "hello");
            }
        });
        checks.put("cancel", Jdbc::cancel);
        checks.put("100 MB result, at once and by a cursor", () -> {
            String query = "SELECT repeat('x', 1000) FROM generate_series(1, 100000)";
            try (Connection c = connect()) {
                is(sum(c, query, 0), 100_000_000L);
                c.setAutoCommit(false);
                is(sum(c, query, 1000), 100_000_000L);
            }
        });
        checks.put("10 MB parameter and value", () -> {
            byte[] data = new byte[10_000_000];
            for (int i = 0; i < data.length; i++) data[i] = (byte) i;
            try (Connection c = connect(); PreparedStatement s = c.prepareStatement("SELECT ?::bytea")) {
                s.setBytes(1, data);
                try (ResultSet r = s.executeQuery()) {
                    r.next();
                    is(Arrays.equals(r.getBytes(1), data), true);
                }
            }
        });
        checks.put("pool", Jdbc::pool);
    }

    public static void main(String[] args) {
        boolean failed = false;
        for (Map.Entry<String, Check> check : checks.entrySet()) {
            try {
                check.getValue().run();
                System.out.println("ok " + check.getKey());
            } catch (Throwable e) {
                failed = true;
                System.out.println("FAILED " + check.getKey() + ": " + e.toString().replace('\n', ';'));
            }
        }
        System.exit(failed ? 1 : 0);
    }
}
