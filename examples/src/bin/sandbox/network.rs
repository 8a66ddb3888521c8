//! `network proxy`, `network rules`, `network reload`, `network allow`, `network block`, `network log`, `network check`.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use sandbox_core::net::policy::{Clause, Layer, Layers, Mode, RuleSet};
use sandbox_core::net::{EgressPolicy, Way};
use sandbox_core::{Dirs, NetworkCheck, Sandbox, net};
use serde_json::Value;

use crate::cli::{self, Hosts, Network};
use crate::creation;
use crate::failure::{Failure, one_line};
use crate::interrupt::Interrupts;
use crate::output::{self, BAD, GOOD, QUIET, styled};
use crate::tail::Tail;

/// What `check` answers with for what would be denied.
const DENIED: u8 = 1;

/// Looks at or sets what a sandbox may reach.
pub(crate) async fn network(dirs: &Dirs, verb: Network) -> Result<u8, Failure> {
    match verb {
        Network::Proxy(arguments) => proxy(dirs, &arguments).await,
        Network::Rules(arguments) => rules(dirs, &arguments).await,
        Network::Reload(arguments) => {
            let sandbox = Sandbox::connect_in(dirs.clone(), &arguments.name).await?;
            sandbox.reload_network().await?;
            output::print(shown(&sandbox.network_layers().await?).as_bytes())?;
            Ok(0)
        }
        Network::Allow(hosts) => {
            let rules = patterns(&hosts, |rules, pattern| rules.allow(pattern))?;
            extend(dirs, &hosts.name, rules).await
        }
        Network::Block(hosts) => {
            let rules = patterns(&hosts, |rules, pattern| rules.block(pattern))?;
            extend(dirs, &hosts.name, rules).await
        }
        Network::Log(arguments) => log(dirs, &arguments).await,
        Network::Check(arguments) => check(dirs, &arguments).await,
    }
}

async fn proxy(dirs: &Dirs, arguments: &cli::Proxy) -> Result<u8, Failure> {
    let sandbox = Sandbox::connect_in(dirs.clone(), &arguments.name).await?;
    let mut rules = sandbox.network().await?;
    if arguments.rules.is_given() {
        rules = creation::rules(&arguments.rules, rules).await?;
        sandbox.set_network(rules.clone()).await?;
    }
    output::print(shown(&sandbox.network_layers().await?).as_bytes())?;
    Ok(0)
}

/// Shows the rules in force, each with whose it is where there is more than the sandbox's own.
fn shown(layers: &Layers) -> String {
    let is_alone = layers.iter().count() == 1;
    let mut text = String::new();
    for (layer, rules) in layers.iter() {
        let whose = match is_alone {
            true => String::new(),
            false => format!("{:13}", layer.to_string()),
        };
        for line in listed(rules, layer == Layer::Sandbox).lines() {
            text += &format!("{whose}{line}\n");
        }
    }
    text
}

/// Only the lowest layer's mode means something.
fn listed(rules: &RuleSet, with_mode: bool) -> String {
    let mut text = match with_mode {
        true => format!("policy  {}\n", rules.mode()),
        false => String::new(),
    };
    let mut add = |what: &str, clauses: &[Clause]| {
        for clause in clauses {
            text += &format!("{what:7} {clause}\n");
        }
    };
    add("allow", rules.allowed());
    add("block", rules.blocked());
    if let Some(limits) = rules.limits() {
        add("limit", limits);
        if limits.is_empty() {
            text += "limit   nothing\n";
        }
    }
    text
}

async fn rules(dirs: &Dirs, arguments: &cli::ShowRules) -> Result<u8, Failure> {
    let sandbox = Sandbox::connect_in(dirs.clone(), &arguments.name).await?;
    let layers = sandbox.network_layers().await?;
    let own = match layers.iter().count() {
        1 => true,
        _ => arguments.own,
    };
    let text = match (own, arguments.json) {
        (true, true) => sandbox.network().await?.to_json() + "\n",
        (true, false) => sandbox.network().await?.to_toml(),
        (false, true) => layers.to_json() + "\n",
        (false, false) => layers.to_toml(),
    };
    output::print(text.as_bytes())?;
    Ok(0)
}

async fn extend(dirs: &Dirs, name: &str, added: RuleSet) -> Result<u8, Failure> {
    let sandbox = Sandbox::connect_in(dirs.clone(), name).await?;
    sandbox.extend_network(added).await?;
    output::print(shown(&sandbox.network_layers().await?).as_bytes())?;
    Ok(0)
}

/// Reads patterns into rules of one kind.
fn patterns(
    arguments: &Hosts,
    add: fn(RuleSet, &str) -> Result<RuleSet, net::Error>,
) -> Result<RuleSet, Failure> {
    let mut patterns = arguments.patterns.iter();
    let rules = patterns.try_fold(RuleSet::deny(), |rules, pattern| add(rules, pattern));
    rules.map_err(|error| Failure::from_error(&error))
}

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(200);

async fn log(dirs: &Dirs, arguments: &cli::Log) -> Result<u8, Failure> {
    let sandbox = Sandbox::connect_in(dirs.clone(), &arguments.name).await?;
    let path = sandbox.network_log();
    let failed = |error| Failure::new(format!("read {}", path.display()), error);
    let mut interrupts = Interrupts::listen()?;
    let mut tail = Tail::of(path.clone());
    loop {
        let removed = tail.is_removed();
        let lines = tail.more().map_err(failed)?;
        output::print(told(&lines, arguments).as_bytes())?;
        if !arguments.follow || removed {
            return Ok(0);
        }
        interrupts.or(tokio::time::sleep(LOOK)).await?;
    }
}

/// Returns what is to be shown of these lines.
fn told(lines: &str, arguments: &cli::Log) -> String {
    let mut text = String::new();
    for written in lines.lines() {
        let Ok(event) = serde_json::from_str::<Value>(written) else {
            continue;
        };
        if arguments.blocked && !is_blocked(&event) {
            continue;
        }
        match arguments.json {
            true => text.extend([written, "\n"]),
            false => text += &line(&event),
        }
    }
    text
}

/// Whether something was not let through, or may have been: nobody knows what a gap swallowed.
fn is_blocked(event: &Value) -> bool {
    event["verdict"] == "deny" || event["kind"] == "refused" || event["kind"] == "gap"
}

/// Says an event in one line: when, what was decided, about what, why.
fn line(event: &Value) -> String {
    let word = |key: &str| event[key].as_str().map(one_line);
    let number = |key: &str| event[key].as_u64();
    let time = UNIX_EPOCH + Duration::from_millis(number("time_ms").unwrap_or(0));
    let mut text = styled(QUIET, humantime::format_rfc3339_millis(time));
    let verdict = word("verdict").or(word("kind")).unwrap_or_default();
    let style = match verdict.as_str() {
        "allow" => GOOD,
        "deny" | "refused" => BAD,
        _ => QUIET,
    };
    text += &format!("  {}", styled(style, format!("{verdict:7}")));
    if let Some(method) = word("method") {
        let _ = write!(text, " {method}");
    }
    if let Some(host) = word("host") {
        let _ = match number("port") {
            Some(port) => write!(text, " {host}:{port}{}", word("path").unwrap_or_default()),
            None => write!(text, " name {host}"),
        };
    }
    if let (Some(up), Some(down)) = (number("bytes_up"), number("bytes_down")) {
        let _ = write!(text, "  {up} bytes up, {down} down");
    }
    for why in [word("text"), word("rule")].into_iter().flatten() {
        let _ = write!(text, "  ({why})");
    }
    if let Some(missed) = number("missed") {
        let _ = write!(text, "  {missed} events were lost");
    }
    text + "\n"
}

async fn check(dirs: &Dirs, arguments: &cli::Check) -> Result<u8, Failure> {
    let (name, url) = match arguments.target.as_slice() {
        [url] => (None, url),
        [name, url] => (Some(name), url),
        _ => return Err(Failure::new("check", "a URL is needed")),
    };
    let (checked, mode) = match name {
        Some(name) => {
            if arguments.upstream.is_given() {
                let why = "a sandbox keeps the proxy that it was made with";
                return Err(Failure::new("use --upstream-proxy", why));
            }
            let sandbox = Sandbox::connect_in(dirs.clone(), name).await?;
            let rules = creation::rules(&arguments.rules, sandbox.network().await?).await?;
            let mode = rules.mode();
            (sandbox.check_network(url, Some(rules)).await?, mode)
        }
        None => {
            let rules = creation::rules(&arguments.rules, RuleSet::deny()).await?;
            let mode = rules.mode();
            (check_to_be(dirs, (arguments, rules), url).await?, mode)
        }
    };
    output::print(answer(&checked, mode).as_bytes())?;
    Ok(if checked.allowed { 0 } else { DENIED })
}

/// Says what a check found, and which way a connection would go where that is not a matter of course.
fn answer(checked: &NetworkCheck, mode: Mode) -> String {
    if !checked.allowed {
        let why = checked.denial.as_deref().unwrap_or_default();
        return format!("{} {}\n", styled(BAD, "denied:"), one_line(why));
    }
    let why = match &checked.rule {
        Some(rule) => format!("rule: {}", one_line(rule)),
        None => format!("policy: {mode}"),
    };
    let mut text = format!("{} {why}\n", styled(GOOD, "allowed:"));
    if let Some(way) = checked.way.as_ref().filter(|way| **way != Way::Direct) {
        text += &format!("reached: {way}\n");
    }
    text
}

/// Checks for a sandbox that is made now.
async fn check_to_be(
    dirs: &Dirs,
    (arguments, rules): (&cli::Check, RuleSet),
    url: &str,
) -> Result<NetworkCheck, Failure> {
    let failed = |error: net::Error| Failure::from_error(&error);
    let layers = layers_to_be(dirs)?.sandbox(rules.clone());
    let policy: Arc<dyn EgressPolicy> = match layers.iter().count() {
        1 => Arc::new(rules),
        _ => Arc::new(layers),
    };
    let inspector = net::inspect::Inspector::builder().build().map_err(failed)?;
    let mut proxy = net::Proxy::builder(policy).inspector(inspector);
    let upstream = creation::upstream(&arguments.upstream)?;
    if let Some(upstream) = upstream
        .map(|upstream| upstream.load())
        .transpose()?
        .flatten()
    {
        proxy = proxy.upstream_proxy(upstream);
    }
    let checked = proxy.build().check(url).await.map_err(failed)?;
    Ok(checked.into())
}

/// Returns what a sandbox that is made now has above its own rules.
fn layers_to_be(dirs: &Dirs) -> Result<Layers, Failure> {
    let mut layers = Layers::new();
    let organization = creation::organization_rules().map(|rules| rules.load());
    if let Some(rules) = organization.transpose()?.flatten() {
        layers = layers.organization(rules);
    }
    if let Some(rules) = creation::user_rules(dirs).load()? {
        layers = layers.user(rules);
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_blocked_is_told_of_and_what_may_have_been() {
        let lines = concat!(
            r#"{"kind":"decision","verdict":"allow","host":"a"}"#,
            "\n",
            r#"{"kind":"decision","verdict":"deny","host":"b"}"#,
            "\nno event\n",
            r#"{"kind":"refused"}"#,
            "\n",
            r#"{"kind":"gap","missed":3}"#,
            "\n",
        );
        let shown = |blocked| {
            let arguments = cli::Log {
                name: "x".to_owned(),
                follow: false,
                blocked,
                json: true,
            };
            told(lines, &arguments)
        };
        let all: Vec<_> = lines.lines().filter(|line| *line != "no event").collect();
        assert_eq!(shown(false).lines().collect::<Vec<_>>(), all);
        assert_eq!(shown(true).lines().collect::<Vec<_>>(), all[1..]);
    }

    #[test]
    fn an_event_is_one_harmless_line() {
        let event = json!({
            "time_ms": 1_700_000_000_000_u64, "kind": "decision", "host": "evil\n.example\u{1b}[2J",
            "port": 443, "verdict": "deny", "text": "no rule allows this host",
        });
        assert_eq!(
            anstream::adapter::strip_str(&line(&event)).to_string(),
            "2023-11-14T22:13:20.000Z  deny    evil; .example\\u{1b}[2J:443  (no rule allows this host)\n"
        );
        let lookup = json!({ "kind": "lookup", "host": "a.example", "verdict": "allow" });
        let text = anstream::adapter::strip_str(&line(&lookup)).to_string();
        assert!(text.ends_with("  allow   name a.example\n"), "{text}");
    }
}
