import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.Socket;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.LinkedHashMap;
import java.util.Map;

import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;

/**
 * Prints what pgjdbc and HikariCP make of each answer: CLIENT|ANSWER|what was
 * raised|its SQLSTATE|what the next use makes of it|statements. Arguments: the ports
 * of the server and of who controls it.
 */
public class Answers {
    interface Work { void with(Statement s) throws Exception; }
    interface Action { void run() throws Exception; }

    static String url;
    static Socket controller;
    static BufferedReader lines;
    static HikariDataSource pool;

    static String control(String line) throws IOException {
        controller.getOutputStream().write((line + "\n").getBytes());
        return lines.readLine();
    }

    static void session(Work work) throws Exception {
        try (Connection c = pool.getConnection(); Statement s = c.createStatement()) {
            work.with(s);
            c.commit();
        }
    }

    static void ask() throws Exception { session(s -> s.execute("SELECT 1")); }

    static void connect() throws SQLException { DriverManager.getConnection(url, "postgres", "").close(); }

    static void idle() throws Exception {
        ask();
        control("strike idle");
        // What was used within half a second is taken to be alive.
        ask();
    }

    static String[] outcome(Action action) {
        try {
            action.run();
            return new String[] {"works", ""};
        } catch (SQLException e) {
            return new String[] {e.getClass().getSimpleName(), e.getSQLState() == null ? "" : e.getSQLState()};
        } catch (Exception e) {
            return new String[] {e.getClass().getSimpleName(), ""};
        }
    }

    public static void main(String[] args) throws Exception {
        url = "jdbc:postgresql://127.0.0.1:" + args[0] + "/postgres?sslmode=disable";
        controller = new Socket("127.0.0.1", Integer.parseInt(args[1]));
        lines = new BufferedReader(new InputStreamReader(controller.getInputStream()));
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl(url);
        config.setUsername("postgres");
        config.setMaximumPoolSize(1);
        config.setConnectionTimeout(10_000);
        config.setAutoCommit(false);
        pool = new HikariDataSource(config);

        Map<String, Action> answers = new LinkedHashMap<>();
        answers.put("idle", Answers::idle);
        answers.put("waiting", () -> session(s -> {
            s.execute("SELECT 1");
            control("strike waiting");
            s.execute("SELECT 'strike'");
        }));
        for (String answer : new String[] {"statement", "commit", "close"})
            answers.put(answer, () -> session(s -> s.execute("SELECT 'strike'")));
        answers.put("connect", Answers::connect);
        for (Map.Entry<String, Action> a : answers.entrySet()) {
            ask();
            control("arm " + a.getKey());
            String[] raised = outcome(a.getValue());
            String heard = control("heard");
            String next = outcome(a.getKey().equals("connect") ? Answers::connect : Answers::ask)[0];
            System.out.println(String.join("|", "pgjdbc + HikariCP", a.getKey(), raised[0], raised[1], next, heard));
        }
        System.exit(0);
    }
}
