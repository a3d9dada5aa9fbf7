//! `dunlin-agent service`: the agent as a service of systemd, from boot on.
//!
//! What there is to do is planned in [`plan`] without touching anything, from what was found;
//! [`perform`] does it, and is the only place here that writes files or runs programs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::config::{Config, ConfigError, Settings};
use places::Places;
use status::Status;

mod perform;
mod places;
mod plan;
mod settings;
mod status;
mod unit;

/// The name of the unit.
const UNIT: &str = "dunlin-agent.service";

/// How long a service is watched after its start: an agent that cannot run ends within a tenth of
/// it.
const WATCHED: Duration = Duration::from_secs(1);

/// The agent as a service.
#[derive(Debug, Clone, Args)]
pub struct ServiceArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What is done with the service.
#[derive(Debug, Clone, Subcommand)]
pub enum Action {
    /// Install or update the service, and start it
    #[command(
        after_help = "Options are written to the service's configuration; those that are not \
        given stay as they are there.\nExample: sudo dunlin-agent service install --nats \
        nats://broker:4222 --label site=attic"
    )]
    Install(Box<InstallArgs>),
    /// Stop the service and remove it; program, configuration and state stay
    Uninstall(UninstallArgs),
    /// Tell whether the service runs, and what it runs; exit code 0 running, 3 not, 4 not installed
    Status(Scope),
}

/// Whose service.
#[derive(Debug, Clone, Default, Args)]
pub struct Scope {
    /// A service of this user instead of the system's; needs no root
    #[arg(long)]
    pub user: bool,
    /// Below this directory instead of /, for tests
    #[arg(long, hide = true, env = "DUNLIN_SERVICE_ROOT", value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// What is installed.
#[derive(Debug, Clone, Args)]
pub struct InstallArgs {
    /// Whose service.
    #[command(flatten)]
    pub scope: Scope,
    /// How the agent runs.
    #[command(flatten)]
    pub settings: Settings,
}

/// What is removed.
#[derive(Debug, Clone, Args)]
pub struct UninstallArgs {
    /// Whose service.
    #[command(flatten)]
    pub scope: Scope,
    /// Remove program, configuration and state as well
    #[arg(long)]
    pub purge: bool,
}

/// Why a service cannot be installed, removed or looked at; the message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Another init system.
    #[error(
        "this system was not started by systemd ({path} is absent): have its init system run \
         'dunlin-agent --config FILE', with a file of the same names as the options",
        path = path.display()
    )]
    NoSystemd {
        /// What a system that systemd started has.
        path: PathBuf,
    },
    /// The system's service is root's.
    #[error("the system's service needs root: use sudo, or --user for a service of this user")]
    NotRoot,
    /// No home directory.
    #[error("--user needs HOME: the files of a user's service are below it")]
    NoHome,
    /// The configuration cannot be used.
    #[error("nothing was changed: {0}")]
    Config(#[from] ConfigError),
    /// A file that the configuration names.
    #[error("nothing was changed: {option} {path}: {source}", path = path.display())]
    Named {
        /// Where it is named.
        option: &'static str,
        /// Which file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The state directory is not root's.
    #[error(
        "nothing was changed: --state-dir {path} belongs to user {owner}, and the service is root \
         that may not write what is another's: chown -R root '{path}', or name another directory",
        path = path.display()
    )]
    Foreign {
        /// Which.
        path: PathBuf,
        /// The number of its user.
        owner: u32,
    },
    /// A step did not succeed.
    #[error("{step}: {problem}; once that is mended, the same command goes on")]
    Step {
        /// What was to be done.
        step: String,
        /// What happened.
        problem: String,
    },
    /// The service was started and does not run.
    #[error("{UNIT} was started and is {state}: see {logs}{}", indented(.last))]
    NotRunning {
        /// Its state in systemd's words.
        state: String,
        /// The last lines of its log.
        last: Vec<String>,
        /// The command that shows its log.
        logs: String,
    },
    /// Nobody reads what is said.
    #[error("standard output: {0}")]
    Output(#[from] std::io::Error),
}

impl ServiceError {
    /// 2 for what the caller has to change, 1 for what did not succeed.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoSystemd { .. }
            | Self::NotRoot
            | Self::NoHome
            | Self::Config(_)
            | Self::Named { .. }
            | Self::Foreign { .. } => 2,
            Self::Step { .. } | Self::NotRunning { .. } | Self::Output(_) => 1,
        }
    }
}

/// Does what is asked and tells what was done; the exit code.
///
/// # Errors
/// [`ServiceError`]; an installation changes nothing before its configuration is valid.
pub fn run(args: &ServiceArgs, out: &mut dyn Write) -> Result<u8, ServiceError> {
    match &args.action {
        Action::Install(install) => self::install(install, out),
        Action::Uninstall(uninstall) => self::uninstall(uninstall, out),
        Action::Status(scope) => self::status(scope, out),
    }
}

fn install(args: &InstallArgs, out: &mut dyn Write) -> Result<u8, ServiceError> {
    let places = places(&args.scope, true)?;
    let (_, known) = configuration(&places, &args.settings)?;
    let mut given = args.settings.clone();
    add_library(&mut given, &known, out)?;
    let (text, config) = configuration(&places, &given)?;
    config.check_data()?;
    settings::check_named(&config)?;
    check_owner(&places, &config)?;
    let program = perform::own_program().map_err(|error| ServiceError::Step {
        step: "find this program".to_owned(),
        problem: error.to_string(),
    })?;
    let found = plan::Found {
        in_place: perform::is_same(&program, &places.real(&places.program)),
        beside: perform::beside(&program),
        modprobe: perform::exists(&places.real(Path::new(unit::MODPROBE))),
        program,
    };
    perform::all(&plan::install(&places, &found, &config, text), &places, out)?;
    let running = look(&places, WATCHED)?;
    if !running.is_active() {
        let (state, last) = (running.state(), perform::last_of_log(&places));
        return Err(ServiceError::NotRunning { state, last, logs: places.logs() });
    }
    told_running(&places, &config, &running, out)
}

/// The system's service can write into the state directory that was named. systemd gives it the
/// usual one, and a unit that was edited may run as another user.
fn check_owner(places: &Places, config: &Config) -> Result<(), ServiceError> {
    let edited = perform::exists(&places.real(&places.changes()));
    if places.user || edited || config.state_dir == places.state {
        return Ok(());
    }
    match perform::foreign_owner(&places.real(&config.state_dir)) {
        Some(owner) => Err(ServiceError::Foreign { path: config.state_dir.clone(), owner }),
        None => Ok(()),
    }
}

/// What is told of a service that was installed and runs; the exit code.
fn told_running(
    places: &Places,
    config: &Config,
    running: &Status,
    out: &mut dyn Write,
) -> Result<u8, ServiceError> {
    let servers = link::connect::without_password(&config.link.servers);
    writeln!(out, "\n{UNIT} runs: device {}, NATS {servers}", config.device)?;
    if let Some(link) = running.link() {
        writeln!(out, "  its link    {link}")?;
    }
    writeln!(out, "  its state   dunlin-agent service status{}", places.scope_flag())?;
    writeln!(out, "  its log     {} -f", places.logs())?;
    if let (Some(user), false) = perform::lingering(places) {
        writeln!(out, "It ends when {user} logs out, unless: sudo loginctl enable-linger {user}")?;
    }
    Ok(0)
}

fn indented(lines: &[String]) -> String {
    lines.iter().flat_map(|line| ["\n    ", line]).collect()
}

/// The text of the configuration, and what it says.
fn configuration(places: &Places, given: &Settings) -> Result<(String, Config), ServiceError> {
    let text = settings::text(places, given)?;
    let config = Config::parse(&places.config, &text)?;
    Ok((text, config))
}

/// Adds ONNX Runtime's library to what is given, as the search of whoever installs finds it: a
/// service has neither their home directory nor their variables.
fn add_library(given: &mut Settings, config: &Config, out: &mut dyn Write) -> std::io::Result<()> {
    // One that was there once is looked for again.
    let known = config.onnxruntime.as_deref().is_some_and(perform::exists);
    if known || given.onnxruntime.is_some() {
        return Ok(());
    }
    match perform::onnxruntime(config) {
        // No helper here would load it.
        Err(_) => Ok(()),
        Ok(None) => writeln!(
            out,
            "library   no ONNX Runtime 1.24 or newer was found; --onnxruntime names it, for cuda \
             and ort-cpu"
        ),
        Ok(Some(library)) => {
            given.onnxruntime =
                Some(settings::lasting(&library, perform::variable(settings::NAMED)));
            writeln!(out, "library   {}, named in the configuration", library.display())
        }
    }
}

fn uninstall(args: &UninstallArgs, out: &mut dyn Write) -> Result<u8, ServiceError> {
    let places = places(&args.scope, true)?;
    let installed = perform::exists(&places.real(&places.unit));
    if !installed && !args.purge {
        writeln!(out, "{UNIT} is not installed: {} is absent", places.unit.display())?;
        return Ok(0);
    }
    // One that was named is not the service's alone.
    let (_, config) = configuration(&places, &Settings::default()).ok().unzip();
    let named = config.map(|config| config.state_dir).filter(|path| *path != places.state);
    perform::all(&plan::uninstall(&places, installed, args.purge), &places, out)?;
    if let Some(path) = named.filter(|path| perform::exists(&places.real(path))) {
        writeln!(out, "kept      {} (its state, by --state-dir)", path.display())?;
    }
    if let (Some(user), true) = perform::lingering(&places) {
        writeln!(out, "kept      lingering (loginctl disable-linger {user})")?;
    }
    if !args.purge {
        let (config, state) = (places.config.display(), places.state.display());
        writeln!(out, "kept      {}, {config}, {state} (--purge)", places.program.display())?;
    }
    Ok(0)
}

fn status(scope: &Scope, out: &mut dyn Write) -> Result<u8, ServiceError> {
    let places = places(scope, false)?;
    let status = look(&places, Duration::ZERO)?;
    let program = places.real(&places.program);
    let version = perform::version(&program).unwrap_or_else(|| "does not run".to_owned());
    let settings = Settings { config: Some(places.real(&places.config)), ..Settings::default() };
    write!(out, "{}", status.told(&places, &version, Config::resolve(settings).as_ref()))?;
    Ok(status.exit_code())
}

/// Where everything is; whoever changes the system's service has to be root.
fn places(scope: &Scope, changes: bool) -> Result<Places, ServiceError> {
    let root = scope.root.clone().unwrap_or_else(|| "/".into());
    let places =
        if scope.user { Places::user(root, &perform::variable)? } else { Places::system(root) };
    let booted = places.real(Path::new("/run/systemd/system"));
    if !perform::exists(&booted) {
        return Err(ServiceError::NoSystemd { path: booted });
    }
    let elsewhere = scope.root.is_some();
    if changes && !scope.user && !elsewhere && !rustix::process::geteuid().is_root() {
        return Err(ServiceError::NotRoot);
    }
    Ok(places)
}

/// What systemd says of the service; for a service that was just started, after it was watched.
fn look(places: &Places, watched: Duration) -> Result<Status, ServiceError> {
    std::thread::sleep(watched);
    let asked = plan::Step::Systemctl(status::QUESTION.iter().map(ToString::to_string).collect());
    Ok(Status::parse(&perform::step(&asked, places)?))
}

#[cfg(test)]
mod tests;
