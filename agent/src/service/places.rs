//! Where the files of a service are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{ServiceError, UNIT};

/// The files of a service, as the service sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    /// The directory that all others are below.
    root: PathBuf,
    /// A user's service, not the system's.
    pub(super) user: bool,
    /// The program that runs.
    pub(super) program: PathBuf,
    /// Its configuration.
    pub(super) config: PathBuf,
    /// The unit.
    pub(super) unit: PathBuf,
    /// Its state, unless the configuration says otherwise.
    pub(super) state: PathBuf,
}

impl Places {
    /// Of the system's service.
    pub(super) fn system(root: PathBuf) -> Self {
        Self {
            root,
            user: false,
            program: "/usr/local/bin/dunlin-agent".into(),
            config: "/etc/dunlin/agent.toml".into(),
            unit: Path::new("/etc/systemd/system").join(UNIT),
            state: "/var/lib/dunlin-agent".into(),
        }
    }

    /// Of a user's service: below the home directory, and where the XDG variables say.
    ///
    /// # Errors
    /// [`ServiceError::NoHome`] without `HOME`.
    pub(super) fn user(
        root: PathBuf,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ServiceError> {
        let home: PathBuf = variable("HOME").ok_or(ServiceError::NoHome)?.into();
        let or = |name: &str, default: &str| {
            variable(name).map_or_else(|| home.join(default), PathBuf::from)
        };
        let config = or("XDG_CONFIG_HOME", ".config");
        Ok(Self {
            root,
            user: true,
            program: home.join(".local/bin/dunlin-agent"),
            unit: config.join("systemd/user").join(UNIT),
            config: config.join("dunlin/agent.toml"),
            state: or("XDG_STATE_HOME", ".local/state").join("dunlin-agent"),
        })
    }

    /// What `systemctl edit` makes of the unit.
    pub(super) fn changes(&self) -> PathBuf {
        self.unit.with_file_name(format!("{UNIT}.d"))
    }

    /// Where a file of the service is for us.
    pub(super) fn real(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The option that names this scope, with a space before it.
    pub(super) fn scope_flag(&self) -> &'static str {
        if self.user { " --user" } else { "" }
    }

    /// The command that shows the service's log.
    pub(super) fn logs(&self) -> String {
        format!("journalctl{} -u dunlin-agent", self.scope_flag())
    }
}
