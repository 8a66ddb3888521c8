//! From arguments to a new sandbox: workspaces, image, limits, rules, name.

use std::path::{Path, PathBuf};

use sandbox_core::net::{
    self,
    policy::{Preset, Registries, RuleSet},
    registries,
};
use sandbox_core::{
    Description, Dirs, Image, Limits, PolicySource, Sandbox, SandboxBuilder, Templates,
    UpstreamProxy, Workspace, sync,
};

use clap::ValueEnum;

use crate::cli::{Creation, Granted, Mode, Rules, Upstream};
use crate::failure::Failure;

/// The file that makes a folder an OCI layout.
const OCI_LAYOUT: &str = "oci-layout";

/// The longest name of a sandbox.
const MAX_NAME: usize = 63;

/// Everything that the arguments say about a sandbox, looked up and checked.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    /// Whether the name was given, or follows from the rest.
    pub(crate) named: bool,
    pub(crate) image: Image,
    workspaces: Vec<Workspace>,
    limits: Limits,
    network: RuleSet,
    env: Vec<(String, String)>,
    user: Option<String>,
    services: Vec<Granted>,
    upstream: Option<UpstreamProxy>,
    snapshots: bool,
    cold: bool,
}

impl Plan {
    /// Looks up what the arguments name.
    pub(crate) async fn of(creation: &Creation) -> Result<Self, Failure> {
        let workspaces = workspaces(creation)?;
        let image = creation
            .image
            .as_deref()
            .map_or(Ok(Image::Default), image)?;
        let mut limits = Limits::default();
        limits.cpus = creation.cpus.unwrap_or(limits.cpus);
        limits.memory_mib = creation.memory.unwrap_or(limits.memory_mib);
        limits.disk_mib = creation.disk.unwrap_or(limits.disk_mib);
        let derived = || name_of(creation.agent.as_str(), &workspaces);
        Ok(Self {
            name: creation.name.clone().unwrap_or_else(derived),
            named: creation.name.is_some(),
            image,
            workspaces,
            limits,
            network: reaching(
                &creation.service,
                rules(&creation.rules, RuleSet::deny()).await?,
            )?,
            env: creation.env.clone(),
            user: creation.user.clone(),
            services: creation.service.clone(),
            upstream: upstream(&creation.upstream)?,
            snapshots: creation.syncing.snapshots,
            cold: creation.cold,
        })
    }

    /// Returns the builder of a sandbox that is made this way, without a name yet.
    pub(crate) fn builder(&self, dirs: &Dirs) -> Result<SandboxBuilder, Failure> {
        let mut builder = Sandbox::builder()
            .dirs(dirs.clone())
            .image(self.image.clone())
            .limits(self.limits.clone())
            .network(self.network.clone())
            .user_policy(user_rules(dirs));
        if self.cold {
            builder = builder.templates(Templates::Off);
        }
        if let Some(rules) = organization_rules() {
            builder = builder.organization_policy(rules);
        }
        for workspace in &self.workspaces {
            builder = builder.workspace(workspace.clone());
        }
        if self.snapshots {
            builder = builder.snapshot_before_commands();
        }
        for (name, value) in &self.env {
            builder = builder.env(name, value);
        }
        if let Some(user) = &self.user {
            builder = builder.user(user);
        }
        if let Some(upstream) = &self.upstream {
            builder = builder.upstream_proxy(upstream.clone());
        }
        for Granted { service, source } in &self.services {
            let credential = service.credential(source.clone());
            builder = builder.secret(credential.map_err(|error| Failure::from_error(&error))?);
        }
        Ok(builder)
    }

    /// Tells whether something that is done inside may have to be reviewed afterwards.
    pub(crate) fn waits_for_review(&self) -> bool {
        let review = |workspace: &Workspace| workspace.mode == sync::Mode::Review;
        self.workspaces.iter().any(review)
    }

    /// Sets the run time of the machine.
    pub(crate) fn set_run_time(&mut self, time: Option<std::time::Duration>) {
        self.limits.run_time = time;
    }

    /// Makes sure that a sandbox that is there already is what the arguments ask for, as far as they ask
    /// for anything: it keeps what it was made with.
    pub(crate) fn check_fits(
        &self,
        creation: &Creation,
        there: &Description,
    ) -> Result<(), Failure> {
        let mut differing = Vec::new();
        let asks_for_folders =
            !creation.workspaces.is_empty() || creation.no_workspace || creation.syncing.is_given();
        if (asks_for_folders || !self.named) && self.workspaces != there.workspaces {
            differing.push("workspaces");
        }
        let differs = |asked: Option<u32>, has: u32| asked.is_some_and(|asked| asked != has);
        if differs(creation.cpus, there.limits.cpus) {
            differing.push("--cpus");
        }
        if differs(creation.memory, there.limits.memory_mib) {
            differing.push("--memory");
        }
        if differs(creation.disk, there.limits.disk_mib) {
            differing.push("--disk");
        }
        if creation.image.is_some() {
            differing.push("--image");
        }
        if creation.upstream.is_given() {
            differing.push("--upstream-proxy");
        }
        if !creation.service.is_empty() {
            differing.push("--service");
        }
        if creation.rules.is_given() {
            differing.push("network rules (see `sandbox network proxy`)");
        }
        if differing.is_empty() {
            return Ok(());
        }
        Err(Failure::new(
            format!("use the sandbox {}", there.name),
            format!(
                "it exists and keeps what it was made with; leave out or make equal: {}; or remove it, or \
                 choose another --name",
                differing.join(", ")
            ),
        ))
    }
}

impl Rules {
    /// Tells whether they say anything.
    pub(crate) fn is_given(&self) -> bool {
        self.policy.is_some()
            || self.rules_file.is_some()
            || !self.allow_host.is_empty()
            || !self.block_host.is_empty()
    }
}

impl Upstream {
    pub(crate) fn is_given(&self) -> bool {
        self.upstream_proxy.is_some() || self.upstream_proxy_names
    }
}

/// Reads which proxy this host goes through. Not by the parser of arguments, which would repeat a URL that is wrong, and
/// the password in it.
pub(crate) fn upstream(given: &Upstream) -> Result<Option<UpstreamProxy>, Failure> {
    let read = match given.upstream_proxy.as_deref() {
        Some("none") => return Ok(None),
        None | Some("env") => UpstreamProxy::from_environment(),
        Some(text) => match text.strip_prefix("file:") {
            Some(path) => UpstreamProxy::from_file(path),
            None => {
                let read = net::UpstreamProxy::at(text);
                if read
                    .map_err(|error| Failure::from_error(&error))?
                    .has_login()
                {
                    let why = "every user of this machine sees arguments; name a login with file:PATH or in \
                               the environment";
                    return Err(Failure::new("use --upstream-proxy", why));
                }
                UpstreamProxy::at(text)?
            }
        },
    };
    // What cannot be read is told before anything is made.
    read.load()?;
    Ok(Some(match given.upstream_proxy_names {
        true => read.names(),
        false => read,
    }))
}

/// Adds the hosts of services: a credential alone opens nothing.
fn reaching(services: &[Granted], mut rules: RuleSet) -> Result<RuleSet, Failure> {
    for host in services.iter().flat_map(|granted| granted.service.hosts) {
        rules = rules
            .allow(host)
            .map_err(|error| Failure::from_error(&error))?;
    }
    Ok(rules)
}

/// Returns the rules that the arguments make of others: a policy or a file begins anew, hosts are added.
pub(crate) async fn rules(given: &Rules, present: RuleSet) -> Result<RuleSet, Failure> {
    let mut rules = match (given.policy, &given.rules_file) {
        (Some(policy), _) => preset(policy.into()).await,
        (None, Some(path)) => rules_of(path)?,
        (None, None) => present,
    };
    for host in &given.allow_host {
        rules = rules
            .allow(host)
            .map_err(|error| Failure::from_error(&error))?;
    }
    for host in &given.block_host {
        rules = rules
            .block(host)
            .map_err(|error| Failure::from_error(&error))?;
    }
    Ok(rules)
}

/// Where the rules of the organization are. No variable leads elsewhere: they are not the user's to leave out.
pub(crate) fn organization_rules() -> Option<PolicySource> {
    cfg!(unix).then(|| PolicySource::file("/etc/sandbox/policy.toml"))
}

/// Where the user's own rules for all sandboxes are.
pub(crate) fn user_rules(dirs: &Dirs) -> PolicySource {
    PolicySource::file(dirs.config.join("policy.toml"))
}

/// Makes a preset's rules, and tells what of the host's registries is left out.
async fn preset(preset: Preset) -> RuleSet {
    let registries = match preset {
        Preset::Balanced => registries::find(&registries::Environment::of_process()).await,
        _ => Registries::new(),
    };
    for note in registries.notes() {
        crate::failure::warn(&note.to_string());
    }
    preset.rules(&registries)
}

/// Reads a file of rules: JSON if its name says so, else TOML.
fn rules_of(path: &Path) -> Result<RuleSet, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("read {}", path.display()), error))?;
    let json = path
        .extension()
        .is_some_and(|extension| extension == "json");
    let read = match json {
        true => RuleSet::from_json(&text),
        false => RuleSet::from_toml(&text),
    };
    read.map_err(|error| Failure::from_error(&error))
}

fn workspaces(creation: &Creation) -> Result<Vec<Workspace>, Failure> {
    let syncing = &creation.syncing;
    let found: Result<Vec<Workspace>, Failure> = match &creation.workspaces[..] {
        _ if creation.no_workspace => return Ok(Vec::new()),
        [] => current_folder().map(|workspace| vec![with_mode(workspace, syncing.mode)]),
        texts => texts
            .iter()
            .map(|text| workspace(text, syncing.mode))
            .collect(),
    };
    let furnish = |mut workspace: Workspace| {
        workspace.mask.extend_from_slice(&syncing.mask);
        workspace.ignore.extend_from_slice(&syncing.ignore);
        workspace.output.extend_from_slice(&syncing.output);
        workspace.gitignore = syncing.gitignore;
        match syncing.ignore_generated {
            true => workspace.ignore_generated(),
            false => workspace,
        }
    };
    let found = found?.into_iter().map(furnish);
    // As the sandbox has them, to be compared with one that is there.
    let resolved = found.map(|workspace| workspace.resolved().map_err(Failure::from));
    resolved.collect()
}

/// Reads `PATH` or `PATH:MODE`; a folder whose own name ends that way is meant where there is one.
fn workspace(text: &str, mode: Option<Mode>) -> Result<Workspace, Failure> {
    let resolve = |path: &str| {
        let found = Path::new(path).canonicalize();
        found.map_err(|error| Failure::new(format!("use the workspace {path}"), error))
    };
    let named = text.rsplit_once(':').filter(|_| !Path::new(text).exists());
    let named = named.and_then(|(path, mode)| Some((path, Mode::from_str(mode, false).ok()?)));
    let (path, mode) = named.map_or((text, mode), |(path, mode)| (path, Some(mode)));
    Ok(with_mode(Workspace::sync(resolve(path)?), mode))
}

fn with_mode(workspace: Workspace, mode: Option<Mode>) -> Workspace {
    match mode {
        Some(mode) => workspace.mode(mode.into()),
        None => workspace,
    }
}

/// The current folder, where none is named: never the whole machine, or everything that a person has, by
/// accident.
fn current_folder() -> Result<Workspace, Failure> {
    let failed = |error| Failure::new("use the current folder as the workspace", error);
    let here = std::env::current_dir()
        .and_then(|here| here.canonicalize())
        .map_err(failed)?;
    let home = std::env::home_dir().and_then(|home| home.canonicalize().ok());
    let reason = if here.parent().is_none() {
        "it is the root of the file system; go to a project's folder, name one, or say --no-workspace"
    } else if home.as_ref() == Some(&here) {
        "it is your home folder; go to a project's folder, name one (`.` if this one is meant), or say \
         --no-workspace"
    } else {
        return Ok(Workspace::sync(here));
    };
    Err(Failure::new(
        format!("use {} as the workspace", here.display()),
        reason,
    ))
}

/// Finds out what an image's path is.
fn image(path: &Path) -> Result<Image, Failure> {
    if path.join(OCI_LAYOUT).is_file() {
        return Ok(Image::oci_layout(path));
    }
    let failed = |reason: &dyn std::fmt::Display| {
        Failure::new(format!("use the image {}", path.display()), reason)
    };
    match path.metadata() {
        Ok(meta) if meta.is_dir() => Ok(Image::directory(path)),
        Ok(_) => Ok(Image::tar(path)),
        Err(error) => match path.to_str().and_then(layout_reference) {
            Some((layout, reference)) => Ok(Image::oci_layout_reference(layout, reference)),
            None if error.kind() == std::io::ErrorKind::NotFound => Err(failed(
                &"there is no such folder or file; a folder, a tar, or an OCI layout folder is needed",
            )),
            None => Err(failed(&error)),
        },
    }
}

/// Splits `LAYOUT:REFERENCE`. Both may hold colons: the layout is the first folder that is one.
fn layout_reference(text: &str) -> Option<(PathBuf, &str)> {
    text.match_indices(':')
        .map(|(at, _)| (PathBuf::from(&text[..at]), &text[at + 1..]))
        .find(|(layout, _)| layout.join(OCI_LAYOUT).is_file())
}

/// Makes a name of the agent's and the first workspace's, in the characters that names have.
fn name_of(agent: &str, workspaces: &[Workspace]) -> String {
    let folder = workspaces
        .first()
        .and_then(|workspace| workspace.host.file_name())
        .map(|name| name.to_string_lossy().to_ascii_lowercase())
        .unwrap_or_default();
    let mut name = agent.to_owned();
    for part in folder.split(|c: char| !c.is_ascii_alphanumeric()) {
        if !part.is_empty() {
            name = format!("{name}-{part}");
        }
    }
    name.truncate(MAX_NAME);
    name.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use sync::Mode as SyncMode;

    use super::*;

    #[test]
    fn a_name_has_only_the_characters_that_names_have() {
        let name = |path: &str| name_of("shell", &[Workspace::sync(path)]);
        assert_eq!(name("/home/me/My Project.git"), "shell-my-project-git");
        assert_eq!(name("/tmp/żółw"), "shell-w");
        assert_eq!(name("/tmp/日本"), "shell");
        assert!(name(&format!("/tmp/{}", "x".repeat(100))).len() <= MAX_NAME);
        assert_eq!(name_of("shell", &[]), "shell");
    }

    #[test]
    fn a_reference_may_hold_colons() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(OCI_LAYOUT), "{}").unwrap();
        let layout = folder.path().to_str().unwrap();
        let found = image(Path::new(&format!("{layout}:alpine:3.20")));
        assert_eq!(
            found.unwrap(),
            Image::oci_layout_reference(layout, "alpine:3.20")
        );
        assert_eq!(image(folder.path()).unwrap(), Image::oci_layout(layout));
    }

    #[test]
    fn a_mode_is_an_ending_unless_a_folder_is_called_so() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let path = root.to_str().unwrap();
        let mode = |text: &str, mode| Some(workspace(text, mode).ok()?.mode);
        assert_eq!(mode(&format!("{path}:ro"), None), Some(SyncMode::ReadOnly));
        let text = format!("{path}:review");
        assert_eq!(mode(&text, Some(Mode::ReadOnly)), Some(SyncMode::Review));
        assert_eq!(mode(path, Some(Mode::Review)), Some(SyncMode::Review));
        assert_eq!(mode(path, None), Some(SyncMode::TwoWaySafe));
        std::fs::create_dir(root.join("odd:ro")).unwrap();
        assert_eq!(
            mode(&format!("{path}/odd:ro"), None),
            Some(SyncMode::TwoWaySafe)
        );
        assert_eq!(mode(&format!("{path}/none"), None), None);
        assert_eq!(mode(&format!("{path}:both"), None), None);
    }
}
