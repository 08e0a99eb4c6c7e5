//! The command line of the drill: reads options as text, then as values, and reports all faults at once.
//!
//! [`program::options`] has the rules for values; the names and defaults are the drill's own. Plans and fleet files are
//! read here too, so that a faulty file ends the drill before it starts anything. Called by the binary.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Command, CommandFactory, Parser};

use kafka_share::BrokerAddress;
use lastcall::config::{Security, SecurityOptions};
use program::logging::escape;
use program::options::values::{self, Read};
use program::options::{ConfigError, Environment, Parsed};
use program::options::{Faults, in_one_line, parse_with, positive, run_or_exit};

use super::command::FleetFile;
use super::options::{BrokerChoice, DrillConfig, JudgeConfig, NativeTarget, RunConfig, Target};
use super::output::Outputs;
use super::place::Place;
use super::place::gateways;
use super::plan::{self, LoadPlan, Plan, Shares, TaskPlan};
use super::texts::Checked;

/// The longest `work_ms` that a gateway accepts.
const LONGEST_WORK_MS: u64 = 120_000;
/// Length in the plan of `drill watch` without `FOR`; the run ignores it.
const ENDLESS: Duration = Duration::from_secs(3600);

/// Built-in plans by name.
const PLANS: [(&str, &str); 5] = [
    ("default", plan::DEFAULT),
    ("short", include_str!("../../../drills/short.toml")),
    ("random", include_str!("../../../drills/random.toml")),
    ("deploys", include_str!("../../../drills/deploys.toml")),
    ("cluster", include_str!("../../../drills/cluster.toml")),
];

/// Restarts, scales, kills and freezes a fleet under load, and judges from evidence whether the promises held
#[derive(Parser)]
#[command(name = "drill run", bin_name = "drill run", version, args_override_self = true, next_line_help = true, after_help = AFTER_RUN)]
struct RunOptions {
    /// Plan: a file, or default, short, random, deploys or cluster
    #[arg(value_name = "PLAN")]
    plan: Option<String>,
    /// Plan, if no argument names it [default: default]
    #[arg(long = "plan", env = "PLAN", value_name = "PLAN")]
    plan_option: Option<String>,
    /// Fleet to act on: native (the drill starts it), a file with the commands of a fleet, or gateway URLs (only load
    /// and audit)
    #[arg(long, env = "TARGET", value_name = "TARGET", default_value = "native")]
    target: String,
    /// Kafka of a native fleet: embedded, or apache (a real Kafka, started by scripts/kafka)
    #[arg(long, env = "BROKER", value_name = "BROKER", default_value = "embedded")]
    broker: String,
    /// A running Kafka, for a native fleet or for gateway URLs; counts before the fleet's file
    #[arg(long, env = "KAFKA_BOOTSTRAP_SERVERS", value_name = "HOST:PORT,...")]
    kafka_bootstrap_servers: Option<String>,
    /// Length of the load [default: as the plan says]
    #[arg(long = "for", env = "FOR", value_name = "DURATION")]
    length: Option<String>,
    /// Requests per second, 1 to 2000 [default: as the plan says]
    #[arg(long, env = "RATE", value_name = "NUMBER")]
    rate: Option<String>,
    /// Worker program of a native fleet [default: worker beside the drill]
    #[arg(long, env = "WORKER_PROGRAM", value_name = "FILE")]
    worker_program: Option<String>,
    /// Gateway program of a native fleet [default: gateway beside the drill]
    #[arg(long, env = "GATEWAY_PROGRAM", value_name = "FILE")]
    gateway_program: Option<String>,
    /// Folder of the ledger and of the logs of a native fleet
    #[arg(long, env = "FOLDER", value_name = "FOLDER", default_value = ".drill")]
    folder: String,
    /// Share group of the workers [default: workers; for a native fleet drill-workers]
    #[arg(long, env = "WORKER_GROUP", value_name = "NAME")]
    worker_group: Option<String>,
    #[command(flatten)]
    common: CommonOptions,
}

/// Sends tasks at a steady rate, shows the fleet meanwhile, and audits every response
#[derive(Parser)]
#[command(name = "drill watch", bin_name = "drill watch", version, args_override_self = true, next_line_help = true, after_help = AFTER_WATCH)]
struct WatchOptions {
    /// Gateways that get requests in turn
    #[arg(long, env = "GATEWAY_URL", value_name = "URL,...", default_value = "http://127.0.0.1:8080")]
    gateway: String,
    /// Requests per second, 1 to 2000
    #[arg(long, env = "RATE", value_name = "NUMBER", default_value = "20")]
    rate: String,
    /// Length of the load [default: until Ctrl-C]
    #[arg(long = "for", env = "FOR", value_name = "DURATION")]
    length: Option<String>,
    /// Requests that wait for their response at once; a request without a place is counted as late
    #[arg(long, env = "CONCURRENCY", value_name = "NUMBER", default_value = "64")]
    concurrency: String,
    /// Extra time of each task in milliseconds; the fleet needs ALLOW_WORK_MS=1
    #[arg(long, env = "WORK_MS", value_name = "NUMBER")]
    work_ms: Option<String>,
    /// First brokers to ask; one reachable broker is enough
    #[arg(long, env = "KAFKA_BOOTSTRAP_SERVERS", value_name = "HOST:PORT,...", default_value = "127.0.0.1:9092")]
    kafka_bootstrap_servers: String,
    /// Share group of the workers
    #[arg(long, env = "WORKER_GROUP", value_name = "NAME", default_value = "workers")]
    worker_group: String,
    /// DRAIN_TIMEOUT of the workers
    #[arg(long, env = "DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s")]
    drain_timeout: String,
    /// WORKER_CONCURRENCY of the workers
    #[arg(long, env = "WORKER_CONCURRENCY", value_name = "NUMBER", default_value = "1")]
    worker_concurrency: String,
    /// WORKER_TIMEOUT of the gateways: a worker silent for this long counts as killed
    #[arg(long, env = "WORKER_TIMEOUT", value_name = "DURATION", default_value = "5s")]
    worker_timeout: String,
    #[command(flatten)]
    common: CommonOptions,
}

/// Judges the ledger of an earlier run again
#[derive(Parser)]
#[command(name = "drill judge", bin_name = "drill judge", version, args_override_self = true, next_line_help = true)]
struct JudgeOptions {
    /// File of the ledger
    #[arg(value_name = "LEDGER")]
    ledger: String,
    #[command(flatten)]
    outputs: OutputOptions,
}

/// Options of run and watch.
#[derive(clap::Args)]
struct CommonOptions {
    /// Repeats the texts and the random actions of an earlier run [default: random]
    #[arg(long, env = "SEED", value_name = "NUMBER")]
    seed: Option<String>,
    /// How often the counts are printed
    #[arg(long, env = "REPORT_EVERY", value_name = "DURATION", default_value = "5s")]
    report_every: String,
    /// Check of the results: analysis (against the shipped handler), or any (for another handler)
    #[arg(long, env = "ANSWERS", value_name = "KIND", default_value = "analysis")]
    answers: String,
    /// Topic of the tasks [default: tasks; for a native fleet drill-tasks]
    #[arg(long, env = "TASKS_TOPIC", value_name = "TOPIC")]
    tasks_topic: Option<String>,
    /// Topic of results and worker statuses [default: results; for a native fleet drill-results]
    #[arg(long, env = "RESULTS_TOPIC", value_name = "TOPIC")]
    results_topic: Option<String>,
    /// File of the ledger: a line of JSON for every submit, answer, run, notification and action
    #[arg(long, env = "LEDGER", value_name = "FILE")]
    ledger: Option<String>,
    #[command(flatten)]
    outputs: OutputOptions,
    #[command(flatten)]
    security: SecurityOptions,
}

/// Files of the verdict.
#[derive(clap::Args)]
struct OutputOptions {
    /// File for the verdict as JSON
    #[arg(long, env = "JSON", value_name = "FILE")]
    json: Option<String>,
    /// File for the verdict with a timeline of workers, tasks and faults, for a browser
    #[arg(long, env = "HTML", value_name = "FILE")]
    html: Option<String>,
}

const AFTER_RUN: &str = "\
Durations are whole numbers with ms, s, m or h. A flag counts before its variable; an empty variable counts as unset.
The drill acts on a native fleet, or on a fleet by the commands of its file. It only loads and audits gateway URLs.

Exit codes:
  0  all promises held
  1  the drill failed or could not decide
  2  wrong usage, configuration or plan
  4  a second signal ended the drill without a verdict
  5  a promise was broken (the last line says which)

Signals: SIGTERM, SIGINT and SIGHUP end the load; the drill then audits what it has. A second signal ends it at once.

Examples:
  drill run                                   two minutes, every fault, on a fleet and a broker of its own
  drill run random --for 1h --broker apache   an hour of random faults on a real Kafka
  drill run cluster --broker apache           two minutes of faults on a real Kafka of three nodes
  drill run short --target drills/fleets/make.toml
                                              on the fleet of make up (MODE=native ALLOW_WORK_MS=1 make up)";

const AFTER_WATCH: &str = "\
Durations are whole numbers with ms, s, m or h. A flag counts before its variable; an empty variable counts as unset.

Exit codes:
  0  all promises held
  1  the drill failed or could not decide: for example, no gateway or no task was answered
  2  wrong usage or configuration
  4  a second signal ended the drill without a verdict
  5  a promise was broken (the last line says which)

Signals: SIGTERM, SIGINT and SIGHUP end the load; the drill then audits what it has. A second signal ends it at once.

Example:
  drill watch --gateway http://127.0.0.1:8080 --rate 20 --for 60s";

/// The program with its subcommands: for its help, and for faults before a subcommand.
fn command() -> Command {
    Command::new("drill")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Loads a fleet, restarts, kills and freezes it, and judges whether its promises held.")
        .subcommand(RunOptions::command().name("run"))
        .subcommand(WatchOptions::command().name("watch"))
        .subcommand(JudgeOptions::command().name("judge"))
        .subcommand_required(true)
        .after_help("drill run --help shows the options of run; the same for watch and judge.")
}

impl DrillConfig {
    /// The configuration of this process. `--help` and `--version` end the process with exit code 0, faults with 2
    /// after printing them to stderr.
    pub fn from_args() -> Self {
        run_or_exit(Self::parse(std::env::args_os(), &Environment::of_process()))
    }

    /// Reads a command line, the first of whose arguments is the program, and an environment.
    ///
    /// # Errors
    /// All faults.
    pub fn parse(
        args: impl IntoIterator<Item = OsString>,
        environment: &Environment,
    ) -> Result<Parsed<Self>, ConfigError> {
        let mut args: Vec<OsString> = args.into_iter().collect();
        let subcommand = args.get(1).and_then(|word| word.to_str()).map(str::to_owned);
        if matches!(subcommand.as_deref(), Some("run" | "watch" | "judge")) {
            args.remove(1);
        }
        match subcommand.as_deref() {
            Some("run") => {
                parse_with(args, environment, |options, _, faults| Self::Run(Box::new(run(options, faults))))
            }
            Some("watch") => {
                parse_with(args, environment, |options, _, faults| Self::Run(Box::new(watch(options, faults))))
            }
            Some("judge") => parse_with(args, environment, |options: &JudgeOptions, _, _| {
                let ledger = PathBuf::from(&options.ledger);
                Self::Judge(JudgeConfig { ledger, outputs: outputs(&options.outputs, None) })
            }),
            _ => Self::without_subcommand(args),
        }
    }

    fn without_subcommand(args: Vec<OsString>) -> Result<Parsed<Self>, ConfigError> {
        match command().try_get_matches_from(args) {
            Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
                Ok(Parsed::Show(error.to_string()))
            }
            Err(error) => Err(ConfigError { faults: vec![in_one_line(&error)] }),
            // Not reached: no option may precede a subcommand, and a subcommand is required.
            Ok(_) => {
                let fault = "expected a subcommand first: drill run, drill watch or drill judge; see --help";
                Err(ConfigError { faults: vec![fault.to_owned()] })
            }
        }
    }
}

fn run(options: &RunOptions, faults: &mut Faults) -> RunConfig {
    let mut plan = Plan::default();
    let name = options.plan.as_deref().or(options.plan_option.as_deref()).unwrap_or("default");
    faults.set(&mut plan, "PLAN", name, read_plan);
    if let Some(length) = &options.length {
        faults.set(&mut plan.length, "FOR", length, positive);
    }
    if let Some(rate) = &options.rate {
        faults.set(&mut plan.load.rate, "RATE", rate, |text| values::number(text, &(1..=2000)).map(Some));
    }
    let mut given = None;
    if let Some(brokers) = &options.kafka_bootstrap_servers {
        faults.set(&mut given, "KAFKA_BOOTSTRAP_SERVERS", brokers, |text| BrokerAddress::list(text).map(Some));
    }
    // A running Kafka may serve another fleet, so the native fleet has topics and a group of its own.
    let prefix = if options.target == "native" { "drill-" } else { "" };
    let mut group = String::new();
    let named = options.worker_group.clone().unwrap_or_else(|| format!("{prefix}workers"));
    faults.set(&mut group, "WORKER_GROUP", &named, |text| values::printable(text, values::TOPIC_LIMIT));
    let (tasks_topic, results_topic) = topics(&options.common, prefix, faults);
    let mut broker = BrokerChoice::Embedded;
    faults.set(&mut broker, "BROKER", &options.broker, |text| match text {
        "embedded" => Ok(BrokerChoice::Embedded),
        "apache" => Ok(BrokerChoice::Apache),
        _ => Err("is no broker; expected embedded or apache".to_owned()),
    });
    let bootstrap = given.clone().unwrap_or_else(|| vec![BrokerAddress::new("127.0.0.1", 9092)]);
    let security = security(&options.common, faults);
    if options.target == "native" && given.is_none() && security != Security::default() {
        faults.note("KAFKA_SECURITY_PROTOCOL: set; expected only with KAFKA_BOOTSTRAP_SERVERS or TARGET".to_owned());
    }
    let place = Place { security, tasks_topic, results_topic, group, ..Place::of(Vec::new(), bootstrap) };
    let text = options.target.as_str();
    let native = NativeTarget {
        broker: given.clone().map_or(broker, BrokerChoice::Given),
        worker: program(options.worker_program.as_ref(), "worker"),
        gateway: program(options.gateway_program.as_ref(), "gateway"),
        place: place.clone(),
    };
    let mut target = Target::Native(native);
    if text.contains("://") {
        let mut listed = Vec::new();
        faults.set(&mut listed, "TARGET", text, gateways);
        target = Target::Outside(Place { gateways: listed, ..place });
        plan.actions.clear();
    } else if text != "native" {
        faults.set(&mut target, "TARGET", text, |path| {
            let mut file = read_fleet(path)?;
            file.place.security = place.security;
            // Options of this run count before the file.
            if given.is_some() {
                file.place.bootstrap = place.bootstrap;
            }
            for (field, named, value) in [
                (&mut file.place.tasks_topic, &options.common.tasks_topic, place.tasks_topic),
                (&mut file.place.results_topic, &options.common.results_topic, place.results_topic),
                (&mut file.place.group, &options.worker_group, place.group),
            ] {
                if named.is_some() {
                    *field = value;
                }
            }
            Ok(Target::Commanded(Box::new(file)))
        });
    }
    // The journal makes poison tasks fail, and only the drill's own workers surely have it.
    if !matches!(target, Target::Native(_)) || options.worker_program.is_some() {
        plan.load.special.poison = 0;
    }
    let folder = PathBuf::from(&options.folder);
    config(target, plan, &options.common, folder, faults)
}

fn watch(options: &WatchOptions, faults: &mut Faults) -> RunConfig {
    let mut length = None;
    if let Some(text) = &options.length {
        faults.set(&mut length, "FOR", text, |text| positive(text).map(Some));
    }
    let special = Shares { keyed: 0, asynchronous: 0, poison: 0 };
    let mut load = LoadPlan { special, ..LoadPlan::default() };
    faults.set(&mut load.rate, "RATE", &options.rate, |text| values::number(text, &(1..=2000)).map(Some));
    let concurrency = &options.concurrency;
    faults.set(&mut load.callers, "CONCURRENCY", concurrency, |text| values::number(text, &(1..=512)));
    if let Some(work) = &options.work_ms {
        faults.set(&mut load.tasks, "WORK_MS", work, |text| {
            let work = Duration::from_millis(values::number(text, &(0..=LONGEST_WORK_MS))?);
            Ok(vec![TaskPlan { share: 1, work }])
        });
    }
    let mut gateway = Vec::new();
    faults.set(&mut gateway, "GATEWAY_URL", &options.gateway, gateways);
    let mut bootstrap = Vec::new();
    faults.set(&mut bootstrap, "KAFKA_BOOTSTRAP_SERVERS", &options.kafka_bootstrap_servers, BrokerAddress::list);
    let mut group = String::new();
    faults.set(&mut group, "WORKER_GROUP", &options.worker_group, |text| values::printable(text, values::TOPIC_LIMIT));
    let (tasks_topic, results_topic) = topics(&options.common, "", faults);
    let security = security(&options.common, faults);
    let mut place = Place { security, tasks_topic, results_topic, group, ..Place::of(gateway, bootstrap) };
    faults.set(&mut place.drain_timeout, "DRAIN_TIMEOUT", &options.drain_timeout, positive);
    faults.set(&mut place.worker_timeout, "WORKER_TIMEOUT", &options.worker_timeout, positive);
    let concurrency = &options.worker_concurrency;
    faults.set(&mut place.concurrency, "WORKER_CONCURRENCY", concurrency, |text| values::number(text, &(1..=1024)));
    let plan = Plan { name: "watch".to_owned(), length: length.unwrap_or(ENDLESS), load, ..Plan::default() };
    let endless = length.is_none();
    RunConfig { endless, ..config(Target::Outside(place), plan, &options.common, PathBuf::new(), faults) }
}

fn config(target: Target, plan: Plan, options: &CommonOptions, folder: PathBuf, faults: &mut Faults) -> RunConfig {
    let mut config = RunConfig {
        target,
        plan,
        endless: false,
        seed: fastrand::u64(0..1_000_000),
        report_every: Duration::from_secs(5),
        answers: Checked::Analysis,
        folder,
        outputs: outputs(&options.outputs, options.ledger.as_deref()),
    };
    if let Some(seed) = &options.seed {
        faults.set(&mut config.seed, "SEED", seed, |text| values::number(text, &(0..=u64::MAX)));
    }
    faults.set(&mut config.report_every, "REPORT_EVERY", &options.report_every, positive);
    faults.set(&mut config.answers, "ANSWERS", &options.answers, |text| match text {
        "analysis" => Ok(Checked::Analysis),
        "any" => Ok(Checked::Any),
        _ => Err("is not known; expected analysis or any".to_owned()),
    });
    config
}

/// The security of Kafka. A file that TLS cannot use is a fault, as in the programs.
fn security(options: &CommonOptions, faults: &mut Faults) -> Security {
    let security = Security::read(&options.security, faults);
    if let Err(fault) = security.client_options(Vec::new(), "") {
        faults.note(escape(&fault.to_string()).to_string());
    }
    security
}

/// The program from the options, or the program beside the drill.
fn program(named: Option<&String>, name: &str) -> PathBuf {
    let own = || std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(name)));
    named.map(PathBuf::from).or_else(own).unwrap_or_else(|| PathBuf::from(name))
}

/// The topics from the options, or else the default names with a prefix.
fn topics(options: &CommonOptions, prefix: &str, faults: &mut Faults) -> (String, String) {
    let topic = |text: &str| values::topic(text, values::TOPIC_LIMIT);
    let (mut tasks_topic, mut results_topic) = (String::new(), String::new());
    let named = |named: &Option<String>, name: &str| named.clone().unwrap_or_else(|| format!("{prefix}{name}"));
    let (tasks, results) = &(named(&options.tasks_topic, "tasks"), named(&options.results_topic, "results"));
    let tasks_read = faults.set(&mut tasks_topic, "TASKS_TOPIC", tasks, topic);
    let results_read = faults.set(&mut results_topic, "RESULTS_TOPIC", results, topic);
    if tasks_read && results_read && tasks == results {
        let problem = format!("is the topic of the tasks, {}; expected another name", escape(tasks));
        faults.add("RESULTS_TOPIC", results, &problem);
    }
    (tasks_topic, results_topic)
}

fn outputs(options: &OutputOptions, ledger: Option<&str>) -> Outputs {
    let path = |path: &Option<String>| path.as_ref().map(PathBuf::from);
    Outputs { ledger: ledger.map(PathBuf::from), json: path(&options.json), html: path(&options.html) }
}

/// A built-in plan, or the plan in a file.
fn read_plan(name: &str) -> Read<Plan> {
    let faulty = |faults: Vec<String>| format!("is no plan: {}", faults.join("; "));
    if let Some((name, text)) = PLANS.iter().find(|(known, _)| *known == name) {
        return Plan::read(name, text).map_err(faulty);
    }
    let known: Vec<&str> = PLANS.iter().map(|(name, _)| *name).collect();
    let text = std::fs::read_to_string(name)
        .map_err(|error| format!("cannot be read ({error}); expected a file, or one of {}", known.join(", ")))?;
    let short = Path::new(name).file_stem().map_or_else(|| name.to_owned(), |stem| stem.to_string_lossy().into_owned());
    Plan::read(&short, &text).map_err(faulty)
}

/// The file of a fleet.
fn read_fleet(path: &str) -> Read<FleetFile> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        format!(
            "cannot be read ({error}); expected native, URLs of gateways (http://host:port), or the file of a fleet such as \
             drills/fleets/make.toml"
        )
    })?;
    FleetFile::read(path, &text).map_err(|faults| format!("is no fleet: {}", faults.join("; ")))
}
