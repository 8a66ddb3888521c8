//! Folders with configuration, and tools that behave and do not.

use std::{os::unix::fs::PermissionsExt, time::Instant};

use super::*;
use crate::policy::Registry;

struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("bin")).unwrap();
        fs::create_dir_all(folder.path().join("home")).unwrap();
        Self { folder }
    }

    fn write(&self, path: &str, text: &str) -> &Self {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn tool(&self, name: &str, script: &str) -> &Self {
        self.write(&format!("bin/{name}"), &format!("#!/bin/sh\n{script}\n"));
        let path = self.folder.path().join("bin").join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn environment(&self) -> Environment {
        let at = |name: &str| self.folder.path().join(name);
        Environment::new()
            .with_home(at("home"))
            .with_root(at(""))
            .with_variable("PATH", format!("relative:{}", at("bin").display()))
    }

    async fn find(&self) -> (Vec<String>, String) {
        shown(&find(&self.environment()).await)
    }
}

fn shown(found: &Registries) -> (Vec<String>, String) {
    let notes: Vec<_> = found.notes().iter().map(ToString::to_string).collect();
    (
        found.found().iter().map(Registry::pattern).collect(),
        notes.join("\n"),
    )
}

#[tokio::test]
async fn files_of_the_person_and_of_the_system_are_read() {
    let host = Host::new();
    host.write("home/.npmrc", "registry=https://npm.example/")
        .write(
            "etc/pip.conf",
            "[global]\nindex-url=https://pip.example/simple",
        )
        .write(
            "home/.cargo/config.toml",
            "[registries.a]\nindex='sparse+https://cargo.example/'",
        )
        .write(
            "etc/apt/sources.list",
            "deb http://apt.example/ stable main",
        )
        .write(
            "etc/apt/sources.list.d/b.sources",
            "URIs: http://apt2.example/",
        )
        .write("etc/apt/sources.list.d/c.bak", "URIs: http://no.example/")
        .write("home/.m2/settings.xml", "<url>https://maven.example</url>");
    let environment = host
        .environment()
        .with_variable("GOPROXY", "https://go.example,direct");
    let (found, notes) = shown(&find(&environment).await);
    assert_eq!(
        found,
        [
            "npm.example",
            "pip.example",
            "cargo.example",
            "apt.example",
            "apt2.example",
            "go.example",
            "maven.example"
        ]
    );
    assert!(
        notes.starts_with("pip: an index may keep its files on another host"),
        "{notes}"
    );
}

#[tokio::test]
async fn indexes_that_cargo_keeps_say_what_it_takes_by_default() {
    let host = Host::new();
    let index = r#"{"dl":"https://dl.example/crates","api":"https://api.example"}"#;
    host.write(
        "home/.cargo/registry/index/index.example-0123456789abcdef/config.json",
        index,
    );
    assert_eq!(
        host.find().await.0,
        ["index.example", "dl.example", "api.example"]
    );
    // Not if something else stands in its place.
    host.write(
        "home/.cargo/config.toml",
        "[source.crates-io]\nreplace-with='m'\n[source.m]\nregistry='sparse+https://m.example/'",
    );
    assert_eq!(host.find().await.0, ["m.example"]);
}

#[tokio::test]
async fn tools_are_asked_from_home_for_what_they_take_by_default() {
    let host = Host::new();
    host.tool(
        "npm",
        "[ \"$*\" = 'config get registry' ] && echo https://u:s3cret@npm.example/; pwd >cwd",
    )
    .tool(
        "pip3",
        "echo '-i, --index-url <url>  Base (default'; echo '  https://pip.example/simple). More'",
    )
    .tool(
        "go",
        "[ \"$1\" = env ] && printf 'https://go.example,direct\\nsum.example\\n'",
    );
    let (found, notes) = host.find().await;
    assert_eq!(
        found,
        ["npm.example", "go.example", "sum.example", "pip.example"]
    );
    assert!(!notes.contains("s3cret"));
    assert!(
        host.folder.path().join("home/cwd").exists(),
        "a project's own files are not read"
    );
}

#[tokio::test]
async fn a_tool_that_hangs_fails_or_babbles_is_noted_and_costs_no_more_than_its_time() {
    let host = Host::new();
    host.tool("npm", "exec sleep 600")
        .tool("pip", "exit 1")
        .tool("go", "exec yes https://x.example")
        .tool("cargo", "exit 0")
        .tool("mvn", "exit 0");
    let started = Instant::now();
    let environment = host.environment().with_patience(Duration::from_secs(2));
    let (found, notes) = shown(&find(&environment).await);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    assert!(found.is_empty(), "{found:?}");
    for manager in ["npm", "pip", "go", "cargo", "maven"] {
        assert!(
            notes.contains(&format!("{manager}: it is installed")),
            "{notes}"
        );
    }
}

#[tokio::test]
async fn what_is_no_file_or_no_text_is_passed_over() {
    let host = Host::new();
    fs::create_dir_all(host.folder.path().join("home/.npmrc")).unwrap();
    fs::create_dir_all(host.folder.path().join("etc")).unwrap();
    fs::write(
        host.folder.path().join("etc/npmrc"),
        b"registry=https://a.example/\xff",
    )
    .unwrap();
    let fifo = std::process::Command::new("mkfifo")
        .arg(host.folder.path().join("etc/pip.conf"))
        .status()
        .unwrap();
    assert!(fifo.success());
    assert_eq!(host.find().await, (Vec::new(), String::new()));
}

#[test]
fn e82_variables_are_not_shown() {
    let environment =
        Environment::new().with_variable("PIP_INDEX_URL", "https://u:s3cret@a.example");
    assert!(!format!("{environment:?}").contains("s3cret"));
}
