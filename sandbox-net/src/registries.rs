//! Where this host's package managers get their packages from.
//!
//! Reads the configuration of the person and of the system, and asks tools that are installed for what they take
//! by default. Never a project's own configuration: a workspace may be somebody else's, and must not choose what
//! may be reached. So tools are asked from the home folder.
//!
//! A tool is started by its absolute path, without a shell, gets a few seconds and little room to answer, and is
//! killed when the time is over. Nothing here uses the network. What it takes from anywhere is hosts
//! ([`Registries`]); what could not be learned is told in the notes.
//!
//! | manager | read | asked |
//! |---|---|---|
//! | npm | `.npmrc`, `/etc/npmrc`, `NPM_CONFIG_REGISTRY` | `npm config get registry` |
//! | pip | `pip.conf`, `PIP_INDEX_URL`, `PIP_EXTRA_INDEX_URL` | `pip install --help`, which names the default |
//! | Cargo | `config.toml`, `CARGO_REGISTRIES_*_INDEX`, indexes that it keeps | (no stable command tells) |
//! | apt | `sources.list`, `sources.list.d` | |
//! | Go | `GOPROXY`, `GOSUMDB` | `go env GOPROXY GOSUMDB` |
//! | Maven | `settings.xml` | (its command needs the network) |

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::Read,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncReadExt, process::Command, time::timeout};

use crate::policy::{Manager, Registries, default_of_help};

/// How long a tool may take. A busy machine takes two seconds to start the slowest of them.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much a tool may say: help of pip has 20 KiB.
const ANSWER: u64 = 256 * 1024;
/// The size of a configuration beyond which it is not read.
const FILE: u64 = 1024 * 1024;
/// How many files of one folder are read.
const FILES: usize = 256;

/// What is known of a host and a person on it.
#[derive(Clone, Default)]
pub struct Environment {
    home: Option<PathBuf>,
    root: PathBuf,
    variables: BTreeMap<String, String>,
    patience: Option<Duration>,
}

impl Environment {
    /// Knows nothing: no home folder, no variables, the system's files at their places.
    pub fn new() -> Self {
        Self {
            root: PathBuf::from("/"),
            ..Self::default()
        }
    }

    /// What this process knows: its variables, and the home folder that they name.
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        let mut environment = Self::new();
        environment.variables = variables.collect();
        environment.home = std::env::home_dir().filter(|home| home.is_absolute());
        environment
    }

    /// Sets the person's home folder.
    #[must_use]
    pub fn with_home(mut self, home: impl Into<PathBuf>) -> Self {
        self.home = Some(home.into());
        self
    }

    /// Sets where the system's own files begin, `/` if it is not said.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = root.into();
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn with_variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Sets how long each tool may take, 10 seconds if it is not said.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    fn variable(&self, name: &str) -> Option<&str> {
        let value = self.variables.get(name)?;
        (!value.is_empty()).then_some(value)
    }

    fn at_home(&self, path: &str) -> Option<PathBuf> {
        Some(self.home.as_ref()?.join(path))
    }

    /// Finds a program, in absolute folders only.
    fn program(&self, name: &str) -> Option<PathBuf> {
        let folders = std::env::split_paths(self.variable("PATH")?);
        let name = format!("{name}{}", std::env::consts::EXE_SUFFIX);
        folders
            .filter(|folder| folder.is_absolute())
            .map(|folder| folder.join(&name))
            .find(|path| path.is_file())
    }

    /// Asks a tool; `None` if it is not there, fails, or takes too long.
    async fn ask(&self, tool: &str, arguments: &[&str]) -> Option<String> {
        let mut child = Command::new(self.program(tool)?)
            .args(arguments)
            .env_clear()
            .envs(&self.variables)
            .current_dir(self.home.as_ref().unwrap_or(&self.root))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .ok()?;
        let mut stdout = child.stdout.take()?.take(ANSWER);
        let answered = async {
            let mut answer = Vec::new();
            stdout.read_to_end(&mut answer).await.ok()?;
            drop(stdout);
            child.wait().await.ok()?.success().then_some(answer)
        };
        let answer = timeout(self.patience.unwrap_or(PATIENCE), answered).await;
        String::from_utf8(answer.ok()??).ok()
    }
}

impl fmt::Debug for Environment {
    /// Leaves out the variables, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("home", &self.home)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// Finds the registries that the host's package managers are configured for.
///
/// Files that are not there are passed over. Takes as long as the slowest tool, and no longer than the patience of
/// the environment; dropping the future kills the tools.
pub async fn find(environment: &Environment) -> Registries {
    let reading = environment.clone();
    let read = tokio::task::spawn_blocking(move || read(&reading)).await;
    let mut found = read.unwrap_or_default();
    let (npm, pip, go) = tokio::join!(
        environment.ask("npm", &["config", "get", "registry"]),
        ask_pip(environment),
        environment.ask("go", &["env", "GOPROXY", "GOSUMDB"]),
    );
    if let Some(answer) = npm {
        found.addresses(Manager::Npm, "npm", &answer);
    }
    if let Some(answer) = go {
        // One line for each variable that was asked for.
        let (proxy, sumdb) = answer.split_once('\n').unwrap_or((&answer, ""));
        found.go_proxy("go", proxy);
        found.go_sumdb("go", sumdb);
    }
    match pip.as_deref().and_then(default_of_help) {
        Some(url) if !found.has(Manager::Pip) => found.addresses(Manager::Pip, "pip", &url),
        _ => {}
    }
    note_what_is_missing(environment, &mut found);
    found
}

async fn ask_pip(environment: &Environment) -> Option<String> {
    let help = ["install", "--help"];
    match environment.ask("pip", &help).await {
        Some(answer) => Some(answer),
        None => environment.ask("pip3", &help).await,
    }
}

fn note_what_is_missing(environment: &Environment, found: &mut Registries) {
    for (manager, tools) in [
        (Manager::Npm, &["npm"][..]),
        (Manager::Pip, &["pip", "pip3"]),
        (Manager::Cargo, &["cargo"]),
        (Manager::Apt, &["apt-get"]),
        (Manager::Go, &["go"]),
        (Manager::Maven, &["mvn"]),
    ] {
        let installed = tools.iter().any(|tool| environment.program(tool).is_some());
        if installed && !found.has(manager) {
            let text =
                "it is installed, but no public registry could be learned; allow its host by name";
            found.note(manager, text);
        }
    }
    if found.has(Manager::Pip) {
        let text = "an index may keep its files on another host, which pip does not tell; allow that one by name";
        found.note(Manager::Pip, text);
    }
}

/// Reads all configuration files and variables.
fn read(environment: &Environment) -> Registries {
    let mut found = Registries::new();
    read_npm(environment, &mut found);
    read_pip(environment, &mut found);
    read_cargo(environment, &mut found);
    read_apt(environment, &mut found);
    if let Some(value) = environment.variable("GOPROXY") {
        found.go_proxy("GOPROXY", value);
    }
    if let Some(value) = environment.variable("GOSUMDB") {
        found.go_sumdb("GOSUMDB", value);
    }
    let own = environment.at_home(".m2/settings.xml");
    let system = environment.root.join("etc/maven/settings.xml");
    for path in own.into_iter().chain([system]) {
        each(&path, |name, text| found.maven_settings(name, text));
    }
    found
}

fn read_npm(environment: &Environment, found: &mut Registries) {
    for name in ["NPM_CONFIG_REGISTRY", "npm_config_registry"] {
        if let Some(value) = environment.variable(name) {
            found.addresses(Manager::Npm, name, value);
        }
    }
    let own = match environment.variable("NPM_CONFIG_USERCONFIG") {
        Some(path) => Some(PathBuf::from(path)),
        None => environment.at_home(".npmrc"),
    };
    for path in own.into_iter().chain([environment.root.join("etc/npmrc")]) {
        each(&path, |name, text| found.npmrc(name, text));
    }
}

fn read_pip(environment: &Environment, found: &mut Registries) {
    for name in ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"] {
        if let Some(value) = environment.variable(name) {
            found.addresses(Manager::Pip, name, value);
        }
    }
    let configured = environment.variable("XDG_CONFIG_HOME").map(PathBuf::from);
    let configured = configured.or_else(|| environment.at_home(".config"));
    let paths = [
        environment.variable("PIP_CONFIG_FILE").map(PathBuf::from),
        configured.map(|folder| folder.join("pip/pip.conf")),
        environment.at_home(".pip/pip.conf"),
        Some(environment.root.join("etc/pip.conf")),
    ];
    for path in paths.into_iter().flatten() {
        each(&path, |name, text| found.pip_conf(name, text));
    }
}

fn read_cargo(environment: &Environment, found: &mut Registries) {
    for (name, value) in &environment.variables {
        if name.starts_with("CARGO_REGISTRIES_") && name.ends_with("_INDEX") {
            found.addresses(Manager::Cargo, name, value);
        }
    }
    let folder = match environment.variable("CARGO_HOME") {
        Some(path) => Some(PathBuf::from(path)),
        None => environment.at_home(".cargo"),
    };
    let Some(folder) = folder else {
        return;
    };
    let mut replaced = false;
    for name in ["config.toml", "config"] {
        each(&folder.join(name), |name, text| {
            found.cargo_config(name, text);
            replaced |= Registries::cargo_replaces_default(text);
        });
    }
    // Cargo names the folder of an index by its host and a hash, and keeps there where the packages are.
    for index in entries(&folder.join("registry/index")) {
        let name = index.file_name().and_then(|name| name.to_str());
        let Some((host, _)) = name.and_then(|name| name.rsplit_once('-')) else {
            continue;
        };
        let known = found
            .found()
            .iter()
            .any(|one| one.manager == Manager::Cargo && one.pattern() == host);
        if replaced && !known {
            continue;
        }
        each(&index.join("config.json"), |name, text| {
            found.addresses(Manager::Cargo, name, &format!("https://{host}"));
            found.cargo_index(name, text);
        });
    }
}

fn read_apt(environment: &Environment, found: &mut Registries) {
    let folder = environment.root.join("etc/apt");
    let list = folder.join("sources.list");
    each(&list, |name, text| found.apt_list(name, text));
    for path in entries(&folder.join("sources.list.d")) {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("list") => each(&path, |name, text| found.apt_list(name, text)),
            Some("sources") => each(&path, |name, text| found.apt_sources(name, text)),
            _ => {}
        }
    }
}

/// Lists a folder in the order of names.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.take(FILES).map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Gives a file's name and text to a reader, if there is such a file and it is text of a sane size.
fn each(path: &Path, reader: impl FnOnce(&str, &str)) {
    let regular = fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
    if !regular {
        return;
    }
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(FILE).read_to_string(&mut text));
    if read.is_ok() {
        reader(&path.display().to_string(), &text);
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests;
