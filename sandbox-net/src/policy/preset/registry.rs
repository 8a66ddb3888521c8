//! Package registries, as the configuration of package managers names them.
//!
//! Each reader takes a text and finds the addresses in it that the manager would fetch packages from; it is not a
//! whole reader of the format, and takes nothing but hosts out of it: user names, passwords, tokens, paths and
//! queries are dropped at once, so that none of them can be kept or shown. A line that cannot be understood is told
//! by its file and number, never by its text.
//!
//! A registry on this machine or in a private network is not allowed by itself, since that takes an opening of the
//! address floor: it becomes a note that says which rule would do it.

use std::fmt;

use crate::policy::{Host, Pattern, Target, classify, remedy_pattern};

/// A package manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Manager {
    /// npm, and what reads its configuration.
    Npm,
    /// pip, and what reads its configuration.
    Pip,
    /// Cargo.
    Cargo,
    /// apt.
    Apt,
    /// The `go` command.
    Go,
    /// Maven.
    Maven,
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Npm => "npm",
            Self::Pip => "pip",
            Self::Cargo => "cargo",
            Self::Apt => "apt",
            Self::Go => "go",
            Self::Maven => "maven",
        })
    }
}

/// A host that packages come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Registry {
    /// Who is configured for it.
    pub manager: Manager,
    /// The rule that allows it.
    rule: String,
}

impl Registry {
    /// Returns the pattern of the rule that allows it.
    pub fn pattern(&self) -> String {
        self.rule.clone()
    }
}

/// Something that a person should know: what was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Note {
    /// Whom it concerns.
    pub manager: Manager,
    /// What, in one sentence, without anything secret.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.manager, self.text)
    }
}

/// What was found, in order and each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registries {
    found: Vec<Registry>,
    notes: Vec<Note>,
}

/// Where a text is from: the manager and the file's or variable's name, for notes.
#[derive(Debug, Clone, Copy)]
struct Source<'a> {
    manager: Manager,
    name: &'a str,
}

impl Registries {
    /// Nothing found.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lists what was found.
    pub fn found(&self) -> &[Registry] {
        &self.found
    }

    /// Lists what was left out.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// Whether anything was found for a manager.
    pub fn has(&self, manager: Manager) -> bool {
        self.found.iter().any(|found| found.manager == manager)
    }

    /// Reads `.npmrc`: `registry = URL` and `@scope:registry = URL`.
    pub fn npmrc(&mut self, name: &str, text: &str) {
        let source = Source {
            manager: Manager::Npm,
            name,
        };
        for (number, key, value) in assignments(text, &['#', ';']) {
            let named = key == "registry" || (key.starts_with('@') && key.ends_with(":registry"));
            if named {
                self.add(source, number, value);
            }
        }
    }

    /// Reads `pip.conf`: `index-url`, `extra-index-url` and `find-links`, which take several values, over several
    /// lines.
    pub fn pip_conf(&mut self, name: &str, text: &str) {
        let source = Source {
            manager: Manager::Pip,
            name,
        };
        let mut within = false;
        for (number, line) in numbered(text) {
            let continued = line.starts_with([' ', '\t']);
            let (key, values) = match line.split_once(['=', ':']) {
                Some((key, values)) if !continued => (Some(key.trim()), values),
                _ => (None, line),
            };
            if let Some(key) = key {
                let key = key.to_ascii_lowercase().replace('_', "-");
                within = matches!(key.as_str(), "index-url" | "extra-index-url" | "find-links");
            } else if !continued {
                within = false;
            }
            if within && !line.trim_start().starts_with(['#', ';']) {
                self.add_all(source, number, values);
            }
        }
    }

    /// Reads one or several addresses with white space between, as `PIP_INDEX_URL` and its like have them, and as
    /// tools print them.
    pub fn addresses(&mut self, manager: Manager, name: &str, text: &str) {
        self.add_all(Source { manager, name }, 0, text);
    }

    /// Reads cargo's `config.toml`: registries, and what sources are replaced with.
    pub fn cargo_config(&mut self, name: &str, text: &str) {
        let source = Source {
            manager: Manager::Cargo,
            name,
        };
        let Ok(config) = text.parse::<toml::Table>() else {
            return self.note(Manager::Cargo, format!("{name} is not TOML"));
        };
        let tables = |key: &str| config.get(key).and_then(toml::Value::as_table);
        let text = |table: &toml::Table, key: &str| {
            let value = table.get(key).and_then(toml::Value::as_str);
            value.map(str::to_owned)
        };
        let named = |key| tables(key).into_iter().flatten();
        let values = named("registries").chain(named("source"));
        for table in values.filter_map(|(_, value)| value.as_table()) {
            for key in ["index", "registry"] {
                // A source's `registry` may be the name of another one.
                if let Some(url) = text(table, key).filter(|url| url.contains("://")) {
                    self.add(source, 0, &url);
                }
            }
        }
    }

    /// Whether cargo's `config.toml` puts another source in the place of the default registry.
    pub fn cargo_replaces_default(text: &str) -> bool {
        text.parse::<toml::Table>().is_ok_and(|config| {
            let sources = config.get("source").and_then(toml::Value::as_table);
            let default = sources.and_then(|sources| sources.get("crates-io"));
            default.is_some_and(|default| default.get("replace-with").is_some())
        })
    }

    /// Reads the `config.json` of an index that cargo keeps: where its packages are.
    pub fn cargo_index(&mut self, name: &str, text: &str) {
        let source = Source {
            manager: Manager::Cargo,
            name,
        };
        let config: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        for url in ["dl", "api"].iter().filter_map(|key| config[key].as_str()) {
            // `dl` may hold markers in its path; a host never does.
            self.add(source, 0, url);
        }
    }

    /// Reads `sources.list`, one entry to a line: `deb [options] URL suite component…`.
    pub fn apt_list(&mut self, name: &str, text: &str) {
        let source = Source {
            manager: Manager::Apt,
            name,
        };
        for (number, line) in numbered(text) {
            let line = line.split('#').next().unwrap_or_default().trim();
            let Some(rest) = line
                .strip_prefix("deb-src")
                .or_else(|| line.strip_prefix("deb"))
            else {
                continue;
            };
            let rest = rest.trim_start();
            let url = match rest.strip_prefix('[') {
                Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
                None => rest,
            };
            self.add(
                source,
                number,
                url.split_whitespace().next().unwrap_or_default(),
            );
        }
    }

    /// Reads `*.sources`, in the deb822 form: `URIs: URL…`, which may go on in further lines.
    pub fn apt_sources(&mut self, name: &str, text: &str) {
        let source = Source {
            manager: Manager::Apt,
            name,
        };
        let mut stanza: Vec<(usize, String)> = Vec::new();
        let mut within = false;
        let mut enabled = true;
        // An empty line ends a stanza; one more ends the last.
        for (number, line) in numbered(text).chain([(0, "")]) {
            if line.trim().is_empty() {
                for (number, urls) in stanza.drain(..).filter(|_| enabled) {
                    self.add_all(source, number, &urls);
                }
                (within, enabled) = (false, true);
                continue;
            }
            if line.starts_with('#') {
                continue;
            }
            let continued = line.starts_with([' ', '\t']);
            let (key, value) = line.split_once(':').unwrap_or((line, ""));
            if !continued {
                within = key.eq_ignore_ascii_case("uris");
                if key.eq_ignore_ascii_case("enabled") {
                    enabled = !value.trim().eq_ignore_ascii_case("no");
                }
            }
            if within {
                let urls = if continued { line } else { value };
                stanza.push((number, urls.to_owned()));
            }
        }
    }

    /// Reads GOPROXY: addresses with `,` or `|` between, and the words `direct` and `off`.
    pub fn go_proxy(&mut self, name: &str, text: &str) {
        let source = Source {
            manager: Manager::Go,
            name,
        };
        for part in text.split([',', '|']).map(str::trim) {
            if !matches!(part, "" | "off" | "direct") {
                self.add(source, 0, part);
            }
        }
    }

    /// Reads GOSUMDB: a host, which may have a key behind a plus sign, and an address if it is kept elsewhere.
    pub fn go_sumdb(&mut self, name: &str, text: &str) {
        let source = Source {
            manager: Manager::Go,
            name,
        };
        let mut words = text.split_whitespace();
        let host = words.next().and_then(|word| word.split('+').next());
        match (host, words.next()) {
            (None | Some("off"), _) => {}
            (_, Some(url)) => self.add(source, 0, url),
            (Some(host), None) => self.add(source, 0, &format!("https://{host}")),
        }
    }

    /// Reads Maven's `settings.xml`: the `url` of mirrors and repositories, outside comments.
    pub fn maven_settings(&mut self, name: &str, text: &str) {
        let source = Source {
            manager: Manager::Maven,
            name,
        };
        let plain = without_comments(text);
        for rest in plain.split("<url>").skip(1) {
            let url = rest.split('<').next().unwrap_or_default().trim();
            self.add(source, 0, url);
        }
    }

    /// Adds a note.
    pub(crate) fn note(&mut self, manager: Manager, text: impl Into<String>) {
        let text = text.into();
        let note = Note { manager, text };
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn add_all(&mut self, source: Source<'_>, number: usize, text: &str) {
        for url in text.split_whitespace() {
            self.add(source, number, url);
        }
    }

    /// Adds the host of an address.
    fn add(&mut self, source: Source<'_>, number: usize, url: &str) {
        let place = match number {
            0 => source.name.to_owned(),
            number => format!("{} line {number}", source.name),
        };
        let target = match host_of(url) {
            Ok(Some(target)) => target,
            Ok(None) => return,
            Err(()) => {
                let text = format!("{place} names a registry that cannot be read; it is left out");
                return self.note(source.manager, text);
            }
        };
        let private = match &target.host {
            Host::Address(address) => classify(*address).is_some(),
            Host::Name(name) => name.is_localhost(),
        };
        let rule = remedy_pattern(&target);
        if private || Pattern::parse(&rule).is_err() {
            let text = format!(
                "{place} names {target}, which is on this machine or in a private network; it is left out unless a \
                 rule opens its address and port"
            );
            return self.note(source.manager, text);
        }
        let manager = source.manager;
        let registry = Registry { manager, rule };
        if !self.found.contains(&registry) {
            self.found.push(registry);
        }
    }
}

/// Returns host and port of an address, `None` if it is fetched from no host. Everything else in it is dropped.
fn host_of(url: &str) -> Result<Option<Target>, ()> {
    let url = url.trim().trim_matches(['"', '\'']);
    // `sparse+https`, `registry+https`, `mirror+http`, `tor+https`.
    let (scheme, rest) = url.split_once("://").ok_or(())?;
    let port = match scheme.rsplit('+').next().unwrap_or(scheme) {
        "https" => 443,
        "http" => 80,
        "file" | "cdrom" | "copy" => return Ok(None),
        _ => return Err(()),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // A password with a slash in it would leave a user's name where the host stands.
    if path.contains('@') && authority.contains(':') && !authority.contains('@') {
        return Err(());
    }
    let host = authority.rsplit('@').next().unwrap_or(authority);
    Target::parse_with_default_port(host, port)
        .map(Some)
        .map_err(drop)
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(at, line)| (at + 1, line))
}

/// Lists `key = value` with the number of its line.
fn assignments<'a>(
    text: &'a str,
    comments: &'a [char],
) -> impl Iterator<Item = (usize, &'a str, &'a str)> {
    numbered(text).filter_map(move |(number, line)| {
        let line = line.trim();
        let (key, value) = line.split_once('=')?;
        (!line.starts_with(comments)).then_some((number, key.trim(), value.trim()))
    })
}

/// Cuts out `<!-- … -->`; one that does not end takes all that follows.
fn without_comments(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, comment)) = rest.split_once("<!--") {
        plain.push_str(before);
        rest = comment.split_once("-->").map_or("", |(_, after)| after);
    }
    plain + rest
}

/// Finds in pip's help the address that `--index-url` has if nobody names another; lines may be broken anywhere
/// between words.
pub(crate) fn default_of_help(help: &str) -> Option<String> {
    let (_, about) = help.split_once("--index-url")?;
    let words = about.split_whitespace().collect::<Vec<_>>().join(" ");
    let (_, default) = words.split_once("(default ")?;
    let url = default.split([')', ' ']).next()?;
    url.contains("://").then(|| url.to_owned())
}
