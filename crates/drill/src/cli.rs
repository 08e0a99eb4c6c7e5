//! The command line of the drill: first text, then values, all faults reported at once.
//!
//! The rules for texts are those of [`config`](program::options); only the names and the defaults are the drill's own. Plans are read here, too, so that
//! nothing is started for one that is wrong. Called by the binary.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Command, CommandFactory, Parser};

use kafka_share::BrokerAddress;
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

/// The longest `work_ms` that a gateway takes.
const LONGEST_WORK_MS: u64 = 120_000;
/// `drill watch` without `FOR`: the plan needs some length, and it is not looked at.
const ENDLESS: Duration = Duration::from_secs(3600);

/// Plans that are built in, by their names.
const PLANS: [(&str, &str); 5] = [
    ("default", plan::DEFAULT),
    ("short", include_str!("../../../drills/short.toml")),
    ("random", include_str!("../../../drills/random.toml")),
    ("deploys", include_str!("../../../drills/deploys.toml")),
    ("cluster", include_str!("../../../drills/cluster.toml")),
];

/// Rolls, scales, kills and freezes a fleet under load, and says from evidence whether the promises held
#[derive(Parser)]
#[command(name = "drill run", bin_name = "drill run", version, args_override_self = true, next_line_help = true, after_help = AFTER_RUN)]
struct RunOptions {
    /// The plan: a file, or default, short, random, deploys or cluster
    #[arg(value_name = "PLAN")]
    plan: Option<String>,
    /// The plan, where it is not named otherwise [default: default]
    #[arg(long = "plan", env = "PLAN", value_name = "PLAN")]
    plan_option: Option<String>,
    /// What is acted on: native (the drill starts a fleet), a file with the commands of a fleet, or URLs of gateways
    /// that others act on
    #[arg(long, env = "TARGET", value_name = "TARGET", default_value = "native")]
    target: String,
    /// The Kafka of a native fleet: embedded, or apache (a real one, by scripts/kafka)
    #[arg(long, env = "BROKER", value_name = "BROKER", default_value = "embedded")]
    broker: String,
    /// A Kafka that runs; counts before the file of a fleet
    #[arg(long, env = "KAFKA_BOOTSTRAP_SERVERS", value_name = "HOST:PORT,...")]
    kafka_bootstrap_servers: Option<String>,
    /// How long the load goes on [default: as the plan says]
    #[arg(long = "for", env = "FOR", value_name = "DURATION")]
    length: Option<String>,
    /// Requests per second, 1 to 2000 [default: as the plan says]
    #[arg(long, env = "RATE", value_name = "NUMBER")]
    rate: Option<String>,
    /// The worker of a native fleet [default: the one beside the drill]
    #[arg(long, env = "WORKER_PROGRAM", value_name = "FILE")]
    worker_program: Option<String>,
    /// The gateway of a native fleet [default: the one beside the drill]
    #[arg(long, env = "GATEWAY_PROGRAM", value_name = "FILE")]
    gateway_program: Option<String>,
    /// Where the ledger goes, and the logs of a native fleet
    #[arg(long, env = "FOLDER", value_name = "FOLDER", default_value = ".drill")]
    folder: String,
    /// The share group of the workers [default: workers; for a native fleet drill-workers]
    #[arg(long, env = "WORKER_GROUP", value_name = "NAME")]
    worker_group: Option<String>,
    #[command(flatten)]
    common: CommonOptions,
}

/// Sends tasks at a steady rate, shows what the workers do meanwhile, and audits every answer
#[derive(Parser)]
#[command(name = "drill watch", bin_name = "drill watch", version, args_override_self = true, next_line_help = true, after_help = AFTER_WATCH)]
struct WatchOptions {
    /// Gateways to send to, in turn
    #[arg(long, env = "GATEWAY_URL", value_name = "URL,...", default_value = "http://127.0.0.1:8080")]
    gateway: String,
    /// Requests per second, 1 to 2000
    #[arg(long, env = "RATE", value_name = "NUMBER", default_value = "20")]
    rate: String,
    /// How long the load goes on [default: until Ctrl-C]
    #[arg(long = "for", env = "FOR", value_name = "DURATION")]
    length: Option<String>,
    /// Requests that wait for their answer at once; what finds no place is counted as late
    #[arg(long, env = "CONCURRENCY", value_name = "NUMBER", default_value = "64")]
    concurrency: String,
    /// How long each task takes besides, in milliseconds; the fleet must run with ALLOW_WORK_MS=1
    #[arg(long, env = "WORK_MS", value_name = "NUMBER")]
    work_ms: Option<String>,
    /// Brokers to ask first; one that answers is enough
    #[arg(long, env = "KAFKA_BOOTSTRAP_SERVERS", value_name = "HOST:PORT,...", default_value = "127.0.0.1:9092")]
    kafka_bootstrap_servers: String,
    /// The share group of the workers
    #[arg(long, env = "WORKER_GROUP", value_name = "NAME", default_value = "workers")]
    worker_group: String,
    /// DRAIN_TIMEOUT of the workers
    #[arg(long, env = "DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s")]
    drain_timeout: String,
    /// WORKER_CONCURRENCY of the workers
    #[arg(long, env = "WORKER_CONCURRENCY", value_name = "NUMBER", default_value = "1")]
    worker_concurrency: String,
    /// WORKER_TIMEOUT of the gateways: a worker silent for so long counts as killed
    #[arg(long, env = "WORKER_TIMEOUT", value_name = "DURATION", default_value = "5s")]
    worker_timeout: String,
    #[command(flatten)]
    common: CommonOptions,
}

/// Judges a ledger again that an earlier run has left
#[derive(Parser)]
#[command(name = "drill judge", bin_name = "drill judge", version, args_override_self = true, next_line_help = true)]
struct JudgeOptions {
    /// The ledger
    #[arg(value_name = "LEDGER")]
    ledger: String,
    #[command(flatten)]
    outputs: OutputOptions,
}

/// What run and watch have in common.
#[derive(clap::Args)]
struct CommonOptions {
    /// The same texts and the same random actions again [default: others each time]
    #[arg(long, env = "SEED", value_name = "NUMBER")]
    seed: Option<String>,
    /// How often the counts are printed
    #[arg(long, env = "REPORT_EVERY", value_name = "DURATION", default_value = "5s")]
    report_every: String,
    /// What results are held against: analysis (the handler that ships, computed a second time), or any (a handler of one's own)
    #[arg(long, env = "ANSWERS", value_name = "KIND", default_value = "analysis")]
    answers: String,
    /// Topic of the tasks [default: tasks; for a native fleet drill-tasks]
    #[arg(long, env = "TASKS_TOPIC", value_name = "TOPIC")]
    tasks_topic: Option<String>,
    /// Topic of results and worker statuses [default: results; for a native fleet drill-results]
    #[arg(long, env = "RESULTS_TOPIC", value_name = "TOPIC")]
    results_topic: Option<String>,
    /// The ledger: every submit, answer, run, notification and action, a line of JSON each
    #[arg(long, env = "LEDGER", value_name = "FILE")]
    ledger: Option<String>,
    #[command(flatten)]
    outputs: OutputOptions,
}

/// Files for machines, and to look at.
#[derive(clap::Args)]
struct OutputOptions {
    /// The verdict as JSON
    #[arg(long, env = "JSON", value_name = "FILE")]
    json: Option<String>,
    /// A timeline of workers, tasks and faults, to look at in a browser
    #[arg(long, env = "HTML", value_name = "FILE")]
    html: Option<String>,
}

const AFTER_RUN: &str = "\
Durations are whole numbers with ms, s, m or h. A flag counts before its variable; an empty variable counts as unset.
Actions are done to a native fleet and by the commands of a file; gateways by their URLs are only loaded and audited.

Exit codes:
  0  every promise held
  1  could not run, or what was promised could not be checked
  2  wrong usage, configuration or plan
  4  second signal: ended at once, without a verdict
  5  a promise was broken (the verdict, on the last line, says which)

Signals: SIGTERM, SIGINT and SIGHUP end the load, and what there is is audited; a second one ends at once.

Examples:
  drill run                                   two minutes of everything, on a fleet and a broker of its own
  drill run random --for 1h --broker apache   an hour of random faults on a real Kafka
  drill run cluster --broker apache           two minutes of faults on a real Kafka of three nodes
  drill run short --target drills/fleets/make.toml
                                              on the fleet of make up (MODE=native ALLOW_WORK_MS=1 make up)";

const AFTER_WATCH: &str = "\
Durations are whole numbers with ms, s, m or h. A flag counts before its variable; an empty variable counts as unset.

Exit codes:
  0  every promise held
  1  could not run: no gateway answered, or not one task was answered, or what was promised could not be checked
  2  wrong usage or configuration
  4  second signal: ended at once, without a verdict
  5  a promise was broken (the verdict, on the last line, says which)

Signals: SIGTERM, SIGINT and SIGHUP end the load and give the verdict; a second one ends at once.

Example:
  drill watch --gateway http://127.0.0.1:8080 --rate 20 --for 60s";

/// The program without what its subcommands have: for its help, and for what is wrong before a subcommand.
fn command() -> Command {
    Command::new("drill")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Loads a fleet, rolls, kills and freezes it, and says whether its promises held.")
        .subcommand(RunOptions::command().name("run"))
        .subcommand(WatchOptions::command().name("watch"))
        .subcommand(JudgeOptions::command().name("judge"))
        .subcommand_required(true)
        .after_help("drill run --help tells its options; watch and judge alike.")
}

impl DrillConfig {
    /// The configuration of this process. Ends it when there is none: after `--help` and `--version` with 0, and with 2 after
    /// all faults were printed to stderr.
    pub fn from_args() -> Self {
        run_or_exit(Self::parse(std::env::args_os(), &Environment::of_process()))
    }

    /// Reads a command line, the first of whose arguments is the program, and an environment.
    ///
    /// # Errors
    /// Everything that is wrong.
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
            Some("run") => parse_with(args, environment, |options, faults| Self::Run(Box::new(run(options, faults)))),
            Some("watch") => {
                parse_with(args, environment, |options, faults| Self::Run(Box::new(watch(options, faults))))
            }
            Some("judge") => parse_with(args, environment, |options: &JudgeOptions, _| {
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
            // No option stands before the subcommand, and with the subcommand first this is not reached.
            Ok(_) => {
                let fault = "expected a subcommand first: drill run, drill watch or drill judge; see --help";
                Err(ConfigError { faults: vec![fault.to_owned()] })
            }
        }
    }
}

fn run(options: &RunOptions, faults: &mut Faults) -> RunConfig {
    let mut plan = Plan {
        name: String::new(),
        length: ENDLESS,
        fleet: plan::FleetPlan::default(),
        load: LoadPlan::default(),
        tests: Vec::new(),
        actions: Vec::new(),
    };
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
    // On a Kafka that runs there may be a fleet in earnest: another one has topics and a group of its own.
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
    let program = |program: &Option<String>| program.as_ref().map(PathBuf::from);
    let native = NativeTarget {
        broker: given.clone().map_or(broker, BrokerChoice::Given),
        worker: program(&options.worker_program),
        gateway: program(&options.gateway_program),
        tasks_topic: tasks_topic.clone(),
        results_topic: results_topic.clone(),
        group: group.clone(),
    };
    let mut target = Target::Native(native);
    let text = options.target.as_str();
    if text.contains("://") {
        let mut listed = Vec::new();
        faults.set(&mut listed, "TARGET", text, gateways);
        let bootstrap = given.unwrap_or_else(|| vec![BrokerAddress::new("127.0.0.1", 9092)]);
        target = Target::Outside(Place { tasks_topic, results_topic, group, ..Place::of(listed, bootstrap) });
        plan.actions.clear();
    } else if text != "native" {
        faults.set(&mut target, "TARGET", text, |path| {
            let mut file = read_fleet(path)?;
            // What was named for this run counts before the file.
            let place = &mut file.place;
            place.bootstrap = given.unwrap_or(std::mem::take(&mut place.bootstrap));
            for (field, named, value) in [
                (&mut place.tasks_topic, &options.common.tasks_topic, tasks_topic),
                (&mut place.results_topic, &options.common.results_topic, results_topic),
                (&mut place.group, &options.worker_group, group),
            ] {
                if named.is_some() {
                    *field = value;
                }
            }
            Ok(Target::Commanded(Box::new(file)))
        });
    }
    // Poison is what the journal makes of a task, and only workers of ours are known to have it.
    if !matches!(&target, Target::Native(native) if native.worker.is_none()) {
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
    let mut place = Place { tasks_topic, results_topic, group, ..Place::of(gateway, bootstrap) };
    faults.set(&mut place.drain_timeout, "DRAIN_TIMEOUT", &options.drain_timeout, positive);
    faults.set(&mut place.worker_timeout, "WORKER_TIMEOUT", &options.worker_timeout, positive);
    let concurrency = &options.worker_concurrency;
    faults.set(&mut place.concurrency, "WORKER_CONCURRENCY", concurrency, |text| values::number(text, &(1..=1024)));
    let plan = Plan {
        name: "watch".to_owned(),
        length: length.unwrap_or(ENDLESS),
        fleet: plan::FleetPlan::default(),
        load,
        tests: Vec::new(),
        actions: Vec::new(),
    };
    let endless = length.is_none();
    RunConfig { endless, ..config(Target::Outside(place), plan, &options.common, PathBuf::new(), faults) }
}

fn config(target: Target, plan: Plan, options: &CommonOptions, folder: PathBuf, faults: &mut Faults) -> RunConfig {
    let mut config = RunConfig {
        target,
        plan,
        endless: false,
        seed: None,
        report_every: Duration::from_secs(5),
        answers: Checked::Analysis,
        folder,
        outputs: outputs(&options.outputs, options.ledger.as_deref()),
    };
    if let Some(seed) = &options.seed {
        faults.set(&mut config.seed, "SEED", seed, |text| values::number(text, &(0..=u64::MAX)).map(Some));
    }
    faults.set(&mut config.report_every, "REPORT_EVERY", &options.report_every, positive);
    faults.set(&mut config.answers, "ANSWERS", &options.answers, |text| match text {
        "analysis" => Ok(Checked::Analysis),
        "any" => Ok(Checked::Any),
        _ => Err("is not known; expected analysis or any".to_owned()),
    });
    config
}

/// The topics that were named, or those of the default names behind a prefix.
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

/// A plan that is built in, or one in a file.
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
