# Prints what Rails makes of each answer: CLIENT|ANSWER|what was raised|its
# SQLSTATE|what the next use makes of it|statements. Arguments: the ports of the
# server and of who controls it.

require "active_record"
require "socket"

PORT, CONTROL = ARGV.map(&:to_i)
CONTROLLER = TCPSocket.new("127.0.0.1", CONTROL)
OPTIONS = { adapter: "postgresql", host: "127.0.0.1", port: PORT, username: "postgres", database: "postgres",
            sslmode: "disable", pool: 1 }
ActiveRecord::Base.establish_connection(OPTIONS)

def control(line)
  CONTROLLER.puts(line)
  CONTROLLER.gets.strip
end

# A request: its connection is given back at its end.
def session
  ActiveRecord::Base.transaction { yield ActiveRecord::Base.connection }
ensure
  ActiveRecord::Base.clear_active_connections!
end

def connect
  ActiveRecord::Base.remove_connection
  ActiveRecord::Base.establish_connection(OPTIONS)
  ActiveRecord::Base.connection.execute("SELECT 1")
end

def outcome
  yield
  ["works", ""]
rescue => e
  result = e.cause.respond_to?(:result) && e.cause.result
  [e.class.name, (result && result.error_field(PG::Result::PG_DIAG_SQLSTATE)) || ""]
end

ask = -> { session { |c| c.execute("SELECT 1") } }
struck = -> { session { |c| c.execute("SELECT 'strike'") } }
{
  "idle" => -> { ask.(); control("strike idle"); ask.() },
  "waiting" => -> { session { |c| c.execute("SELECT 1"); control("strike waiting"); c.execute("SELECT 'strike'") } },
  "statement" => struck, "commit" => struck, "close" => struck, "connect" => -> { connect },
}.each do |answer, work|
  ask.()
  control("arm #{answer}")
  raised = outcome(&work)
  heard = control("heard")
  following = outcome(&(answer == "connect" ? -> { connect } : ask))
  puts ["Rails", answer, *raised, following[0], heard].join("|")
end
