//! How a sandbox is made.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandbox_base::{Dirs, Error, ErrorKind};
use sandbox_net::{
    approval::Approvals, credentials::Credential, policy::RuleSet, resolve::Resolver,
};
use sandbox_vm::image::Image;
use sandbox_vm::template::Templates;
use sandbox_vm::{Hypervisor, disk};

use crate::host::{default_dirs, default_hypervisor};
use crate::layers::{Above, PolicySource};
use crate::lifecycle::Lifetime;
use crate::network::Inspection;
use crate::owner::{Means, Owner};
use crate::progress::{Progress, Step};
use crate::sandbox::{Link, Sandbox, launch};
use crate::spec::{ExtraDisk, ImageSource, Limits, Spec, Tmpfs, Workspace, check_apart, is_place};
use crate::state::{self, Store, blocking, check_name};
use crate::supervisor::Creation;
use crate::upstream::{UpstreamProxy, unwritable};
use crate::{control, helper};

/// How long a guest may take from the start of its hypervisor to its first word, unless said otherwise:
/// ten times what it takes under emulation on a busy machine.
const BOOT_PATIENCE: Duration = Duration::from_secs(40);

/// The most virtual processors.
const MAX_CPUS: u32 = 64;

/// The least memory that the guest's kernel boots with.
const MIN_MEMORY_MIB: u32 = 128;

/// A sandbox to be. Every setting has a default; [`SandboxBuilder::create`] makes it.
#[derive(Debug, Clone)]
#[must_use]
pub struct SandboxBuilder {
    name: Option<String>,
    image: Image,
    workspaces: Vec<Workspace>,
    network: RuleSet,
    above: Above,
    inspection: Inspection,
    /// Credentials whose values are not to be written down.
    values: Vec<Credential>,
    limits: Limits,
    env: Vec<(String, String)>,
    user: Option<String>,
    read_only_root: bool,
    tmpfs: Vec<Tmpfs>,
    disks: Vec<ExtraDisk>,
    boot_patience: Duration,
    snapshots: bool,
    templates: Templates,
    lifetime: Lifetime,
    upstream: Option<UpstreamProxy>,
    hypervisor: Option<Arc<dyn Hypervisor>>,
    resolver: Option<Arc<dyn Resolver>>,
    approvals: Option<Approvals>,
    dirs: Option<Dirs>,
    progress: Progress,
}

impl SandboxBuilder {
    pub(crate) fn new() -> Self {
        Self {
            name: None,
            image: Image::default(),
            workspaces: Vec::new(),
            network: RuleSet::deny(),
            above: Above::default(),
            inspection: Inspection::default(),
            values: Vec::new(),
            limits: Limits::default(),
            env: Vec::new(),
            user: None,
            read_only_root: false,
            tmpfs: Vec::new(),
            disks: Vec::new(),
            boot_patience: BOOT_PATIENCE,
            snapshots: false,
            templates: Templates::default(),
            lifetime: Lifetime::Attached,
            upstream: None,
            hypervisor: None,
            resolver: None,
            approvals: None,
            dirs: None,
            progress: Progress::silent(),
        }
    }

    /// Names it: 1 to 63 of the characters a-z, 0-9 and `-`. Without, a name is made up.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Chooses what its root is made of; a small Debian with a C compiler, git and Python without.
    pub fn image(mut self, image: Image) -> Self {
        self.image = image;
        self
    }

    /// Adds a workspace. The first one is where commands start.
    pub fn workspace(mut self, workspace: Workspace) -> Self {
        self.workspaces.push(workspace);
        self
    }

    /// Takes an automatic snapshot of the workspaces before each command, as
    /// [`Sandbox::snapshot_workspaces`] does: the command does not begin without. The newest are kept, and one for
    /// each hour and day of the last. Does nothing where folders are no Unix ones.
    pub fn snapshot_before_commands(mut self) -> Self {
        self.snapshots = true;
        self
    }

    /// Sets the egress policy; without one nothing is let through.
    pub fn network(mut self, policy: RuleSet) -> Self {
        self.network = policy;
        self
    }

    /// Sets the rules of whoever answers for the machine: what they block or leave out, no other rule allows. They are
    /// read at each start, and by [`Sandbox::reload_network`].
    pub fn organization_policy(mut self, rules: impl Into<PolicySource>) -> Self {
        self.above.organization = Some(rules.into());
        self
    }

    /// Sets the rules of whoever uses the machine, below those of the organization and above the sandbox's own.
    pub fn user_policy(mut self, rules: impl Into<PolicySource>) -> Self {
        self.above.user = Some(rules.into());
        self
    }

    /// Grants a secret: commands find its placeholder in their environment, and the proxy puts its value into
    /// requests to the hosts that it is granted to, which are opened for that. The policy has to allow
    /// them, too.
    ///
    /// ```no_run
    /// # use sandbox_core::{NetworkPolicy, Sandbox, net::credentials::Service};
    /// # fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let anthropic = Service::named("anthropic").ok_or("unknown")?.from_environment()?;
    /// let builder = Sandbox::builder()
    ///     .network(NetworkPolicy::deny().allow("api.anthropic.com")?)
    ///     .secret(anthropic);
    /// # Ok(())
    /// # }
    /// ```
    pub fn secret(mut self, credential: Credential) -> Self {
        match credential.source().is_reference() {
            true => self.inspection.credentials.push(credential),
            false => self.values.push(credential),
        }
        self
    }

    /// Lets bodies pass that hold a secret's placeholder on its way to a host that it is not granted to, and tells of
    /// it in an event. Without this such a request is refused. For agents that send their model what `env` printed.
    pub fn report_bodies_only(mut self) -> Self {
        self.inspection.report_bodies_only = true;
        self
    }

    /// Opens TLS to the hosts of a pattern, on port 443 unless it names one, so that requests are seen.
    pub fn inspect(mut self, pattern: impl Into<String>) -> Self {
        self.inspection.inspect.push(pattern.into());
        self
    }

    /// Leaves TLS to the hosts of a pattern closed, whatever else says so: for clients that know their host's own
    /// certificate.
    pub fn inspection_bypass(mut self, pattern: impl Into<String>) -> Self {
        self.inspection.bypass.push(pattern.into());
        self
    }

    /// Trusts certificates in PEM to vouch for hosts that are opened, beside those of this system.
    pub fn root_certificates(mut self, pem: impl Into<String>) -> Self {
        self.inspection.roots.push(pem.into());
        self
    }

    /// Sets who looks names up that the policy allows; the host's own resolver without. Only for an attached
    /// sandbox: an object cannot be written down.
    pub fn resolver(mut self, resolver: Arc<dyn Resolver>) -> Self {
        self.resolver = Some(resolver);
        self
    }

    /// Sets who is asked about what no rule allows; nobody without, and then it is denied. Only for an attached sandbox:
    /// an object cannot be written down.
    pub fn approvals(mut self, approvals: Approvals) -> Self {
        self.approvals = Some(approvals);
        self
    }

    /// Sets the proxy that this host has to go through; without, the world is reached from here.
    pub fn upstream_proxy(mut self, upstream: UpstreamProxy) -> Self {
        self.upstream = Some(upstream);
        self
    }

    /// Sets what it may use.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Adds a variable to the environment of every command. It is written to disk: never a secret.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the user that commands run as; the image's own without.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Makes the root read-only: no writable layer, no disk.
    pub fn read_only_root(mut self) -> Self {
        self.read_only_root = true;
        self
    }

    /// Adds a file system in memory.
    pub fn tmpfs(mut self, tmpfs: Tmpfs) -> Self {
        self.tmpfs.push(tmpfs);
        self
    }

    /// Adds a disk image of the host.
    pub fn disk(mut self, disk: ExtraDisk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Sets how long the guest may take to its first word, each of two times; 40 s without.
    pub fn boot_patience(mut self, patience: Duration) -> Self {
        self.boot_patience = patience;
        self
    }

    /// Says whether its machine may be restored from a template instead of booted, which it may without: a start
    /// takes about a third of the time then, and the first one of its kind a little longer. Memory that a restored
    /// guest has used once is not given back to the host before it ends.
    pub fn templates(mut self, templates: Templates) -> Self {
        self.templates = templates;
        self
    }

    /// Lets it outlive this process, in the care of a supervisor process of its own. Only what can be
    /// written down is possible then.
    pub fn detached(mut self) -> Self {
        self.lifetime = Lifetime::Detached;
        self
    }

    /// Chooses the wall; the strongest of this build without.
    pub fn hypervisor(mut self, hypervisor: Arc<dyn Hypervisor>) -> Self {
        self.hypervisor = Some(hypervisor);
        self
    }

    /// Chooses where state, cache and sockets live; where the environment says without.
    pub fn dirs(mut self, dirs: Dirs) -> Self {
        self.dirs = Some(dirs);
        self
    }

    /// Is told about what takes long: downloads, the making of images, the copying of workspaces.
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// Makes the sandbox and starts it; returns when commands can run and the workspaces are in.
    ///
    /// Dropping the future ends and removes what was made so far.
    ///
    /// # Errors
    ///
    /// `Conflict` for a name that is taken; `Invalid` and `NotFound` for what the settings name;
    /// `Unsupported` for a missing backend, with what to install; `Exhausted` for too little memory or
    /// disk; `TimedOut` for a guest that stays silent; `Disconnected` for one that dies. Nothing is left
    /// behind.
    pub async fn create(self) -> Result<Sandbox, Error> {
        let dirs = self.dirs.clone().map_or_else(default_dirs, Ok)?;
        let store = Store::new(dirs.clone());
        let spec = self.spec()?;
        let name = match &self.name {
            Some(name) => name.clone(),
            None => made_up_name()?,
        };
        match self.lifetime {
            Lifetime::Attached => self.create_attached(store, name, spec).await,
            Lifetime::Detached => self.create_detached(store, name, spec).await,
        }
    }

    async fn create_attached(
        self,
        store: Store,
        name: String,
        spec: Spec,
    ) -> Result<Sandbox, Error> {
        let dirs = store.dirs.clone();
        let hypervisor = match self.hypervisor {
            Some(hypervisor) => hypervisor,
            None => {
                let progress = self.progress.part(Step::Machine);
                default_hypervisor(&dirs, helper::path(&dirs.cache)?, progress)?
            }
        };
        let above = spec.above.clone();
        let above = blocking(move || above.load()).await?;
        let judges_requests = above.judges_requests(&spec.network);
        let inspector = spec.inspection.begin(judges_requests, self.values).await?;
        let upstream = match self.upstream {
            Some(upstream) => blocking(move || upstream.load()).await?,
            None => None,
        };
        let owned = state::create(&store, &name, Lifetime::Attached, spec).await?;
        let means = Means {
            above,
            upstream,
            hypervisor,
            resolver: self.resolver,
            approvals: self.approvals,
            inspector,
            progress: self.progress,
            supervised_by: None,
        };
        let owner = Owner::new(owned, dirs, means);
        // Dropping the owner on the way out removes what was made.
        owner.start(None).await?;
        // This process does not go when the machine does: its answers need no waiting for.
        drop(control::serve(&owner).await?);
        Ok(Sandbox {
            name,
            store,
            link: Link::Own(owner),
        })
    }

    async fn create_detached(
        self,
        store: Store,
        name: String,
        spec: Spec,
    ) -> Result<Sandbox, Error> {
        let objects = [
            (self.hypervisor.is_some(), "hypervisor"),
            (self.resolver.is_some(), "resolver"),
            (self.approvals.is_some(), "person to ask"),
        ];
        if let Some((_, what)) = objects.iter().find(|(given, _)| *given) {
            let detail = format!("a {what} given as an object cannot be written down");
            let error = Error::new(ErrorKind::Unsupported, "create a detached sandbox");
            return Err(error.with_detail(detail));
        }
        if self
            .upstream
            .is_some_and(|upstream| !upstream.is_reference())
        {
            return Err(unwritable());
        }
        if let Some(credential) = self.values.first() {
            let name = credential.name();
            return Err(
                Error::new(ErrorKind::Unsupported, "create a detached sandbox").with_detail(format!(
                    "the value of the secret {name} cannot be written down; name where it comes from"
                )),
            );
        }
        let remote = launch(&store, &name, Some(Creation::new(spec)), &self.progress).await?;
        let link = Link::Other(Mutex::new(Some(remote)));
        Ok(Sandbox { name, store, link })
    }

    /// Says why it cannot make more than one that go with their handles, if it cannot.
    pub(crate) fn check_for_many(&self) -> Result<(), &'static str> {
        let by_itself =
            |workspace: &Workspace| workspace.mode.is_two_way() || !workspace.output.is_empty();
        if self.name.is_some() {
            return Err("they would all have one name");
        }
        if self.lifetime == Lifetime::Detached {
            return Err("detached ones would outlive it");
        }
        if self.workspaces.iter().any(by_itself) {
            return Err(
                "only one of them could write to the workspace; add it to the one that is taken",
            );
        }
        Ok(())
    }

    pub(crate) fn memory_mib(&self) -> u32 {
        self.limits.memory_mib
    }

    /// Checks what needs no look at the host.
    fn check(&self) -> Result<(), String> {
        if let Some(name) = &self.name {
            check_name(name).map_err(|error| error.to_string())?;
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(format!("{name:?} is no name of a variable"));
            }
            if value.contains('\0') {
                return Err(format!("the value of {name} has a NUL in it"));
            }
        }
        for disk in &self.disks {
            if !is_place(&disk.target) || !disk.image.is_absolute() {
                let (image, target) = (disk.image.display(), disk.target.display());
                return Err(format!(
                    "the disk {image} at {target} needs two absolute paths"
                ));
            }
        }
        for tmpfs in &self.tmpfs {
            if !is_place(&tmpfs.target) {
                let path = tmpfs.target.display();
                return Err(format!("{path} is no absolute path below the root"));
            }
            if tmpfs.size_mib == 0 {
                // For the kernel that would mean: without a limit.
                return Err(format!("{} has no room", tmpfs.target.display()));
            }
        }
        let Limits {
            cpus,
            memory_mib,
            disk_mib,
            ..
        } = self.limits;
        if !(1..=MAX_CPUS).contains(&cpus) {
            return Err(format!("{cpus} processors; 1 to {MAX_CPUS} are possible"));
        }
        if memory_mib < MIN_MEMORY_MIB {
            return Err(format!(
                "{memory_mib} MiB of memory; the kernel needs at least {MIN_MEMORY_MIB}"
            ));
        }
        let (least, most) = (disk::MIN_BYTES >> 20, disk::MAX_BYTES >> 20);
        if !self.read_only_root && !(least..=most).contains(&u64::from(disk_mib)) {
            return Err(format!(
                "a disk of {disk_mib} MiB; {least} to {most} are possible"
            ));
        }
        Ok(())
    }

    /// Checks the settings and writes them down.
    fn spec(&self) -> Result<Spec, Error> {
        let invalid =
            |detail: String| Error::new(ErrorKind::Invalid, "create a sandbox").with_detail(detail);
        let image = ImageSource::of(&self.image)
            .ok_or_else(|| invalid("this kind of image cannot be written down".into()))?;
        let mut workspaces = Vec::new();
        for workspace in &self.workspaces {
            workspaces.push(workspace.resolved()?);
        }
        check_apart(&workspaces)?;
        self.check().map_err(invalid)?;
        self.inspection.check()?;
        Ok(Spec {
            image,
            workspaces,
            network: self.network.clone(),
            above: self.above.clone(),
            inspection: self.inspection.clone(),
            upstream: self.upstream.clone().filter(UpstreamProxy::is_reference),
            limits: self.limits.clone(),
            env: self.env.clone(),
            user: self.user.clone(),
            read_only_root: self.read_only_root,
            tmpfs: self.tmpfs.clone(),
            disks: self.disks.clone(),
            snapshots: self.snapshots,
            boot_patience: self.boot_patience,
            cold: self.templates == Templates::Off,
        })
    }
}

fn made_up_name() -> Result<String, Error> {
    let random = sandbox_vm::agent::new_exec_id()?.0;
    let hex: String = random[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(format!("sandbox-{hex}"))
}
