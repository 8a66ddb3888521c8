//! The arguments.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use sandbox_core::net::{
    credentials::{Service, Source},
    policy::Preset,
};

const EXAMPLES: &str = "\
Examples:
  sandbox run --rm shell . -- make test        run a project's tests in a microVM of their own
  sandbox run shell                            a shell in a sandbox that goes on afterwards
  sandbox run --rm --memory 4g --cpus 4 --allow-host '*.example.com' shell ~/app -- npm test
  sandbox exec -it shell-app bash              another shell in a sandbox that runs
  sandbox network check --policy allow https://example.com
  sandbox rm -f --all                          end and remove every sandbox

Exit status: that of the command inside; 128+n when signal n ended it; 124 when its time ran out;
125 when the tool failed; 126 when the command cannot be executed; 127 when it is not there.";

const RUN_EXAMPLES: &str = "\
Examples:
  sandbox run --rm shell . -- make test        once, and nothing stays behind
  sandbox run shell                            a shell; the sandbox goes on, `sandbox run shell` comes back
  sandbox run --name lab shell ~/a ~/b:ro      two folders, one of them only to be read
  sandbox run --rm --image alpine.tar --no-workspace shell -- cat /etc/os-release";

const EXEC_EXAMPLES: &str = "\
Examples:
  sandbox exec lab uname -a
  sandbox exec -it lab bash
  sandbox exec -i -w /tmp lab tar -x < files.tar
  sandbox exec -u root -e DEBIAN_FRONTEND=noninteractive lab apt-get install -y jq";

const NETWORK_EXAMPLES: &str = "\
Examples:
  sandbox network proxy lab                                      show the rules
  sandbox network proxy lab --allow-host '*.example.com'           add one
  sandbox network proxy lab --policy deny --allow-host example.org  begin anew
  sandbox network allow lab example.com '*.example.org'            add some, live
  sandbox network block lab evil.example.org
  sandbox network rules lab                                      with whose they are
  sandbox network reload lab                                     read /etc/sandbox/policy.toml and the user's again
  sandbox network log lab --follow --blocked
  sandbox network check lab https://www.example.com/";

const REVIEW_EXAMPLES: &str = "\
Examples:
  sandbox run --mode review shell .       whatever is done inside waits
  sandbox diff --stat shell-app           what is it?
  sandbox diff shell-app src
  sandbox apply shell-app 'src/**'        take that
  sandbox apply --hunk README.md:1,3 shell-app
  sandbox apply --undo shell-app          take it back
  sandbox discard shell-app .             the rest is not wanted";

const TEMPLATE_EXAMPLES: &str = "\
Examples:
  sandbox template ls
  sandbox template prune --max-size 1g --unused 7d
  sandbox template rm 3f9a        by the beginning of its name; sandboxes that run go on";

const FORK_EXAMPLES: &str = "\
What a copy does in its workspaces waits for review, there and not in the sandbox that it is of.

Examples:
  sandbox fork -n 3 lab                    lab-1, lab-2 and lab-3 go on where lab is
  sandbox fork lab careful bold            the same, with names
  sandbox diff bold && sandbox apply bold  look at what one of them did, and take it
  sandbox rm -f careful bold               remove them";

const SNAPSHOT_EXAMPLES: &str = "\
Examples:
  sandbox snapshot create lab before-upgrade
  sandbox restore lab before-upgrade
  sandbox restore --workspaces lab before-upgrade   the folders here go back, too";

const CP_EXAMPLES: &str = "\
Examples:
  sandbox cp notes.txt lab:/tmp/
  sandbox cp lab:/var/log/build.log .";

/// Gives each agent a microVM of its own: own kernel, synchronized workspace, judged network.
#[derive(Debug, Parser)]
#[command(name = "sandbox", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run an agent, or one command, in a sandbox: a new one, or the one of that name
    #[command(after_help = RUN_EXAMPLES)]
    Run(Run),
    /// Create a sandbox and leave it running
    Create(Create),
    /// Run a command in a sandbox that runs
    #[command(after_help = EXEC_EXAMPLES)]
    Exec(Exec),
    /// List sandboxes
    #[command(visible_alias = "list")]
    Ls(List),
    /// Have sandboxes stand still, with all they have in memory
    Pause(Names),
    /// Have paused sandboxes go on where they stood still
    Resume(Names),
    /// Stop sandboxes; their disks are kept, and `run` starts them again
    Stop(Names),
    /// Remove sandboxes with everything that belongs to them
    Rm(Remove),
    /// Copy files or folders into a sandbox or out of it
    #[command(after_help = CP_EXAMPLES)]
    Cp(Copy),
    /// Look at and set what a sandbox may reach
    #[command(subcommand, after_help = NETWORK_EXAMPLES)]
    Network(Network),
    /// Show what was done in a sandbox's workspaces that waits for review
    #[command(after_help = REVIEW_EXAMPLES)]
    Diff(Diff),
    /// Write what waits for review to the workspaces, all of it or nothing
    #[command(after_help = REVIEW_EXAMPLES)]
    Apply(Apply),
    /// Undo inside what waits for review: the sandbox goes back to what this side has
    Discard(Discard),
    /// Look at and steer the synchronization of workspaces
    #[command(subcommand)]
    Sync(Sync),
    /// Keep a sandbox as it is, with what runs in it, to go back to
    #[command(subcommand, after_help = SNAPSHOT_EXAMPLES)]
    Snapshot(MachineSnapshot),
    /// Take a sandbox back to a snapshot: processes, files and memory inside as they were
    #[command(after_help = SNAPSHOT_EXAMPLES)]
    Restore(Restore),
    /// Make copies of a running sandbox, in which everything goes on from where it is
    #[command(after_help = FORK_EXAMPLES)]
    Fork(Fork),
    /// List and remove templates, the saved machines that new sandboxes are restored from
    #[command(subcommand, after_help = TEMPLATE_EXAMPLES)]
    Template(Template),
    /// Say what this machine can do and what it lacks
    Doctor(Doctor),
    /// Obtain now what the first run would obtain: guest kernel and default image
    Setup(Setup),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// One line for each change
    #[arg(long, conflicts_with = "json")]
    pub(crate) stat: bool,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The sandbox
    pub(crate) name: String,
    /// Only these: paths with what is beneath them, or patterns as `*.rs` and `src/**`
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// Also what would run here without being asked, and over what was changed here
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only some hunks of a file, counted from 1 as `diff` shows them
    #[arg(long = "hunk", value_name = "PATH:N[,N]", value_parser = hunks, conflicts_with = "paths")]
    pub(crate) hunks: Vec<Hunks>,
    /// Take the last apply back instead
    #[arg(long, conflicts_with_all = ["force", "hunks", "paths"])]
    pub(crate) undo: bool,
    /// The sandbox
    pub(crate) name: String,
    /// Only these: paths with what is beneath them, or patterns as `*.rs` and `src/**`
    #[arg(value_name = "GLOB")]
    pub(crate) paths: Vec<String>,
}

/// Some hunks of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hunks {
    pub(crate) path: String,
    /// From 1.
    pub(crate) numbers: Vec<usize>,
}

fn hunks(text: &str) -> Result<Hunks, String> {
    let wrong = || "PATH:N or PATH:N,N is needed, with numbers from 1".to_owned();
    let (path, numbers) = text.rsplit_once(':').ok_or_else(wrong)?;
    let numbers: Result<Vec<usize>, _> = numbers.split(',').map(str::parse).collect();
    let numbers = numbers.map_err(|_| wrong())?;
    match numbers.contains(&0) {
        true => Err(wrong()),
        false => Ok(Hunks {
            path: path.to_owned(),
            numbers,
        }),
    }
}

#[derive(Debug, Args)]
pub(crate) struct Discard {
    /// The sandbox
    pub(crate) name: String,
    /// These: paths with what is beneath them, or patterns as `*.rs` and `src/**`; `.` for everything
    #[arg(value_name = "GLOB", required = true)]
    pub(crate) paths: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Sync {
    /// Say how each workspace stands
    Status(SyncStatus),
    /// Bring both sides into agreement now
    Flush(Named),
    /// List what both sides changed, and what stopped; exit status 1 if there is any
    Conflicts(Named),
    /// Go on after a pause or a stop
    Resume(Resume),
    /// Stop synchronizing until `resume`
    Pause(Named),
    /// Keep the workspaces as they are here, to compare with and to go back to
    #[command(subcommand)]
    Snapshot(Snapshot),
}

#[derive(Debug, Subcommand)]
pub(crate) enum MachineSnapshot {
    /// Take one; the sandbox runs on
    Create(SnapshotRm),
    /// List them, the oldest first
    Ls(SyncStatus),
    /// Remove one
    Rm(SnapshotRm),
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// Take the workspaces' folders here back, too; what they are now is kept as a snapshot of them
    #[arg(long)]
    pub(crate) workspaces: bool,
    /// The sandbox
    pub(crate) name: String,
    /// The snapshot
    pub(crate) snapshot: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Take one; what is ignored or masked is not in it
    Create(SnapshotCreate),
    /// List them, the oldest first
    Ls(SyncStatus),
    /// Show what leads from one to another, or to the workspaces as they are
    Diff(SnapshotDiff),
    /// Go back to one, or have some paths of it back; the workspaces as they are now are kept first
    Restore(SnapshotRestore),
    /// Remove one
    Rm(SnapshotRm),
    /// Read and verify all that is kept, and list the damaged; exit status 1 if there is any. The next one that is
    /// taken stores anew what of them the workspaces still have
    Verify(Named),
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotCreate {
    /// The sandbox
    pub(crate) name: String,
    /// What to call it; without, it is automatic and goes in time
    pub(crate) snapshot: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotDiff {
    /// One line for each change
    #[arg(long)]
    pub(crate) stat: bool,
    /// The sandbox
    pub(crate) name: String,
    /// The snapshot
    pub(crate) snapshot: String,
    /// Another one; without, the workspaces as they are
    pub(crate) other: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotRestore {
    /// The sandbox
    pub(crate) name: String,
    /// The snapshot
    pub(crate) snapshot: String,
    /// Only these paths, or what these patterns match
    pub(crate) paths: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotRm {
    /// The sandbox
    pub(crate) name: String,
    /// The snapshot
    pub(crate) snapshot: String,
}

#[derive(Debug, Args)]
pub(crate) struct SyncStatus {
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The sandbox
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Named {
    /// The sandbox
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// What was deleted on one side was meant: delete it on the other
    #[arg(long, conflicts_with = "restore")]
    pub(crate) propagate: bool,
    /// It was not: bring it back
    #[arg(long)]
    pub(crate) restore: bool,
    /// The sandbox
    pub(crate) name: String,
}

/// What is run where no command is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Agent {
    /// A login shell
    Shell,
}

impl Agent {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Shell => "shell",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Remove the sandbox at the end, also when this tool is ended by a signal
    #[arg(long)]
    pub(crate) rm: bool,
    #[command(flatten)]
    pub(crate) creation: Creation,
    /// Run this instead of an interactive agent
    #[arg(last = true, value_name = "ARGS", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    pub(crate) creation: Creation,
}

/// What a new sandbox is made of.
#[derive(Debug, Args)]
pub(crate) struct Creation {
    /// Its name; without, it is that of the agent and the first workspace
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// What to run
    #[arg(value_enum)]
    pub(crate) agent: Agent,
    /// Folders, or files, that appear at the same paths inside, with `:MODE` for one that has another mode than
    /// --mode says, `:ro` for short; the current folder without
    #[arg(value_name = "WORKSPACE[:MODE]", value_hint = ValueHint::AnyPath)]
    pub(crate) workspaces: Vec<String>,
    #[command(flatten)]
    pub(crate) syncing: Syncing,
    /// Bring no folder in, not even the current one
    #[arg(long, conflicts_with = "workspaces")]
    pub(crate) no_workspace: bool,
    /// Virtual processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) cpus: Option<u32>,
    /// Memory, in MiB or as 512m, 2g
    #[arg(long, value_name = "SIZE", value_parser = mebibytes)]
    pub(crate) memory: Option<u32>,
    /// Writable disk, in MiB or as 512m, 20g; takes room only as it is used
    #[arg(long, value_name = "SIZE", value_parser = mebibytes)]
    pub(crate) disk: Option<u32>,
    /// Boot its machine instead of restoring it from a template
    #[arg(long)]
    pub(crate) cold: bool,
    /// Root file system: a folder, a tar, or an OCI layout folder with or without `:REFERENCE`
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) image: Option<PathBuf>,
    /// Set a variable of every command; it is written to disk, so never a secret
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Give a service's credential, which itself stays outside, and let the service's hosts through; it
    /// comes from this environment's variable of the usual name, unless another or a file is named
    #[arg(long, value_name = "NAME[=env:VAR|=file:PATH]", value_parser = granted)]
    pub(crate) service: Vec<Granted>,
    /// User that commands run as
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    #[command(flatten)]
    pub(crate) rules: Rules,
    #[command(flatten)]
    pub(crate) upstream: Upstream,
    /// End after this long, as in 90s or 10m: the command of `run`, the machine of `create`
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

/// How workspaces are synchronized.
#[derive(Debug, Args)]
pub(crate) struct Syncing {
    /// Which way changes flow [default: two-way-safe]
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) mode: Option<Mode>,
    /// Keep paths out of the sandbox, by a pattern as `*.secret` or `/config/local.toml`; what looks like
    /// a secret is kept out anyway
    #[arg(long, value_name = "PATTERN")]
    pub(crate) mask: Vec<String>,
    /// Leave paths alone on either side, as `node_modules`
    #[arg(long, value_name = "PATTERN")]
    pub(crate) ignore: Vec<String>,
    /// Leave alone what the workspaces' own .gitignore files name
    #[arg(long)]
    pub(crate) gitignore: bool,
    /// Leave alone what tools make anew on each machine, as node_modules and target
    #[arg(long)]
    pub(crate) ignore_generated: bool,
    /// Let paths come out, from a read-only workspace too, and nothing in, as `/dist`
    #[arg(long, value_name = "PATTERN")]
    pub(crate) output: Vec<String>,
    /// Take a snapshot of the workspaces as they are here before each command of a new sandbox; see
    /// `sandbox sync snapshot`
    #[arg(long)]
    pub(crate) snapshots: bool,
}

impl Syncing {
    /// Tells whether it says anything.
    pub(crate) fn is_given(&self) -> bool {
        let patterns = [&self.mask, &self.ignore, &self.output];
        let is_listed = patterns.iter().any(|patterns| !patterns.is_empty());
        self.mode.is_some() || is_listed || self.gitignore || self.ignore_generated
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Both ways; what both sides changed is a conflict, and each keeps its own
    TwoWaySafe,
    /// Both ways; where both sides changed a file this side's wins, and the other is kept beside it
    TwoWayHostWins,
    /// In; what is changed inside waits for `sandbox diff` and `sandbox apply`
    Review,
    /// In; nothing comes back
    #[value(alias = "ro")]
    ReadOnly,
}

impl From<Mode> for sandbox_core::sync::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::TwoWaySafe => Self::TwoWaySafe,
            Mode::TwoWayHostWins => Self::TwoWayHostWins,
            Mode::Review => Self::Review,
            Mode::ReadOnly => Self::ReadOnly,
        }
    }
}

/// The proxy that this host goes through.
#[derive(Debug, Args)]
pub(crate) struct Upstream {
    /// Reach the world through a proxy: `env` for what http_proxy, https_proxy, all_proxy and no_proxy say when the
    /// sandbox starts, which is the default; `none`; a URL (http, https, socks5); or file:PATH of a URL with a login
    #[arg(long, value_name = "PROXY")]
    pub(crate) upstream_proxy: Option<String>,
    /// Send names to that proxy, not the addresses that were judged: for a proxy that filters by name, or
    /// a host that cannot look the world's names up
    #[arg(long)]
    pub(crate) upstream_proxy_names: bool,
}

/// A service, and where its credential comes from.
#[derive(Debug, Clone)]
pub(crate) struct Granted {
    pub(crate) service: &'static Service,
    pub(crate) source: Source,
}

/// What may be reached.
#[derive(Debug, Args)]
pub(crate) struct Rules {
    /// Rules to begin with: what happens to hosts that no rule names, or a preset
    #[arg(long, value_name = "POLICY")]
    pub(crate) policy: Option<Policy>,
    /// Begin with the rules of a file, TOML or JSON
    #[arg(long, value_name = "FILE", conflicts_with = "policy")]
    pub(crate) rules_file: Option<PathBuf>,
    /// Let a host through: name, *.name, address or network, with or without :port
    #[arg(long, value_name = "HOST")]
    pub(crate) allow_host: Vec<String>,
    /// Block a host, whatever else allows it
    #[arg(long, value_name = "HOST")]
    pub(crate) block_host: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// Public hosts are let through, on ports 80 and 443
    Allow,
    /// They are not
    Deny,
    /// Nothing is let through, as deny
    Locked,
    /// Models, source hosts, and the package registries that this host uses are let through
    Balanced,
    /// Public hosts are let through, as allow
    Open,
}

impl From<Policy> for Preset {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Allow | Policy::Open => Self::Open,
            Policy::Deny | Policy::Locked => Self::Locked,
            Policy::Balanced => Self::Balanced,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Pass standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set a variable of its environment
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Working folder inside
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<PathBuf>,
    /// User that it runs as: a name, UID or UID:GID
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Kill it after this long, as in 90s or 10m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// The sandbox
    pub(crate) name: String,
    /// The command and its arguments; no shell comes between
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Template {
    /// List templates, the one used last first
    #[command(visible_alias = "list")]
    Ls(List),
    /// Remove templates; the next sandbox that needs one boots and saves it anew
    Rm {
        /// Their names, or what these begin with
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Remove templates until limits are kept, and what interrupted builds left
    Prune {
        /// What all of them may take on the disk, as in 512m or 2g; 4g without
        #[arg(long, value_name = "SIZE", value_parser = mebibytes)]
        max_size: Option<u32>,
        /// For how long one may be unused, as in 12h or 7d; 30 days without
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        unused: Option<Duration>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Names {
    /// The sandboxes
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Fork {
    /// How many copies
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=64), conflicts_with = "copies")]
    pub(crate) count: u16,
    /// The sandbox
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// What the copies are to be called; the sandbox's name with a number without
    #[arg(value_name = "COPY")]
    pub(crate) copies: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Those that run, too; what has not come back from them is lost
    #[arg(short, long)]
    pub(crate) force: bool,
    /// All sandboxes
    #[arg(long, conflicts_with = "names")]
    pub(crate) all: bool,
    /// The sandboxes
    #[arg(required_unless_present = "all", value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// PATH here or NAME:PATH inside
    #[arg(value_name = "SRC", value_hint = ValueHint::AnyPath)]
    pub(crate) from: String,
    /// NAME:PATH inside or PATH here; into it where that is a folder
    #[arg(value_name = "DST", value_hint = ValueHint::AnyPath)]
    pub(crate) to: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Network {
    /// Show or set a sandbox's rules, from now on and for live connections too
    Proxy(Proxy),
    /// Show a sandbox's rules in the form of a file: a table for each layer, where there is more than its own
    Rules(ShowRules),
    /// Read the organization's and the user's rules again
    Reload(Reload),
    /// Allow hosts, from now on
    Allow(Hosts),
    /// Block hosts, from now on and for live connections too
    Block(Hosts),
    /// Show what was decided
    Log(Log),
    /// Tell whether a URL would be let through: exit status 0 if so, 1 if not
    Check(Check),
}

#[derive(Debug, Args)]
pub(crate) struct Proxy {
    /// The sandbox
    pub(crate) name: String,
    /// With --policy the rules begin anew; without it hosts are added
    #[command(flatten)]
    pub(crate) rules: Rules,
}

#[derive(Debug, Args)]
pub(crate) struct ShowRules {
    /// The sandbox
    pub(crate) name: String,
    /// Only its own rules, for --rules-file
    #[arg(long)]
    pub(crate) own: bool,
    /// As JSON, not TOML
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Reload {
    /// The sandbox
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Log {
    /// The sandbox
    pub(crate) name: String,
    /// Go on with what comes, until a signal or until the sandbox is removed
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only what was not let through
    #[arg(long)]
    pub(crate) blocked: bool,
    /// As JSON, one object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Hosts {
    /// The sandbox
    pub(crate) name: String,
    /// HOST, *.DOMAIN, ADDRESS or NETWORK, each with :PORT if only one is meant
    #[arg(required = true, value_name = "PATTERN")]
    pub(crate) patterns: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) rules: Rules,
    #[command(flatten)]
    pub(crate) upstream: Upstream,
    /// A sandbox whose rules to ask, and a URL, "METHOD URL", HOST or HOST:PORT
    #[arg(required = true, num_args = 1..=2, value_names = ["[NAME]", "URL"])]
    pub(crate) target: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Setup {
    /// Make them anew, from the distribution's present packages
    #[arg(long)]
    pub(crate) rebuild: bool,
}

/// Reads a size: a number of MiB, or one with a unit.
fn mebibytes(text: &str) -> Result<u32, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u32 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "m" | "mb" | "mib" => 1,
        "g" | "gb" | "gib" => 1024,
        "t" | "tb" | "tib" => 1024 * 1024,
        unit => return Err(format!("{unit:?} is no unit; 2048, 512m and 2g are sizes")),
    };
    let number: u32 = digits
        .parse()
        .map_err(|_| "a whole number is needed; 2048, 512m and 2g are sizes".to_owned())?;
    match number.checked_mul(factor) {
        None | Some(0) => Err("the size is out of range".to_owned()),
        Some(size) => Ok(size),
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("NAME=VALUE is needed".to_owned()),
    }
}

fn granted(text: &str) -> Result<Granted, String> {
    let (name, from) = match text.split_once('=') {
        Some((name, from)) => (name, Some(from)),
        None => (text, None),
    };
    let service = Service::named(name).ok_or_else(|| {
        let names: Vec<_> = Service::all().iter().map(|service| service.name).collect();
        format!("there is no service of this name, but {}", names.join(", "))
    })?;
    let source = match from.map(|from| from.split_once(':')) {
        None => Source::Environment(service.variables[0].to_owned()),
        Some(Some(("env", name))) if !name.is_empty() => Source::Environment(name.to_owned()),
        Some(Some(("file", path))) if !path.is_empty() => {
            // Whoever starts the sandbox again does so from a folder of their own.
            let path = std::path::absolute(path).map_err(|error| error.to_string())?;
            Source::File(path)
        }
        Some(_) => return Err("env:VAR or file:PATH is needed, never a value".to_owned()),
    };
    Ok(Granted { service, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_mebibytes_unless_they_say_otherwise() {
        assert_eq!(mebibytes("2048"), Ok(2048));
        assert_eq!(mebibytes("512m"), Ok(512));
        assert_eq!(mebibytes("2g"), Ok(2048));
        assert_eq!(mebibytes("1TiB"), Ok(1 << 20));
        for wrong in ["", "g", "0", "-1", "2k", "1.5g", "9999999t", "99999999999"] {
            assert!(mebibytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_services_credential_is_named_by_where_it_comes_from() {
        let of = |text: &str| granted(text).map(|granted| granted.source);
        assert!(
            matches!(of("anthropic"), Ok(Source::Environment(name)) if name == "ANTHROPIC_API_KEY")
        );
        assert!(matches!(of("openai=env:KEY"), Ok(Source::Environment(name)) if name == "KEY"));
        assert!(matches!(of("github=file:/k"), Ok(Source::File(path)) if path.as_os_str() == "/k"));
        assert!(matches!(of("github=file:k"), Ok(Source::File(path)) if path.is_absolute()));
        for wrong in [
            "nobody",
            "openai=",
            "openai=sk-the-value",
            "openai=env:",
            "openai=file:",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
        assert!(granted("nobody").unwrap_err().contains("anthropic, openai"));
        assert!(
            !granted("openai=sk-the-value")
                .unwrap_err()
                .contains("sk-the"),
            "never repeated"
        );
    }

    #[test]
    fn what_follows_a_sandboxs_name_belongs_to_the_command() {
        let cli = Cli::try_parse_from(["sandbox", "exec", "-i", "lab", "ls", "-la", "--json"]);
        let Verb::Exec(exec) = cli.unwrap().verb else {
            panic!("exec is exec");
        };
        assert_eq!(exec.command, ["ls", "-la", "--json"]);
        assert!(exec.interactive && !exec.tty);
    }

    #[test]
    fn what_follows_two_dashes_is_the_command_of_run() {
        let line = "sandbox run --rm --memory 2g shell a b:ro -- make -j2";
        let Verb::Run(run) = Cli::try_parse_from(line.split(' ')).unwrap().verb else {
            panic!("run is run");
        };
        assert_eq!(run.creation.workspaces, ["a", "b:ro"]);
        assert_eq!(run.creation.memory, Some(2048));
        assert_eq!(run.command, ["make", "-j2"]);
    }
}
