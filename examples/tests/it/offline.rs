//! What needs no machine: help, wrong input, rules, what there is on this host.

use std::process::Stdio;

use crate::support::{Place, write};

#[test]
fn help_has_examples_and_ends_well() {
    let place = Place::new();
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["exec", "--help"],
        &["network", "--help"],
    ] {
        let ended = place.run(arguments).exited(0);
        assert!(
            ended.stdout().contains("Examples:\n  sandbox "),
            "{arguments:?}"
        );
        assert_eq!(ended.stderr(), "");
    }
}

#[test]
fn completions_know_the_verbs() {
    let place = Place::new();
    let ended = place.run(&["completions", "bash"]).exited(0);
    assert!(ended.stdout().contains("network"));
}

#[test]
fn wrong_arguments_are_the_tools_own_failure() {
    let place = Place::new();
    let ended = place.run(&["run", "--memory", "lots", "shell"]).exited(125);
    assert!(ended.stderr().contains("512m and 2g"), "{ended:?}");
    place.run(&["frobnicate"]).exited(125);
    let service = |text| {
        place
            .run(&["create", "--service", text, "shell"])
            .exited(125)
    };
    assert!(service("nobody").stderr().contains("anthropic, openai"));
    let value = service("openai=the-value-itself");
    assert!(value.stderr().contains("env:VAR or file:PATH"), "{value:?}");
}

#[test]
fn rules_and_logs_are_of_a_sandbox() {
    let place = Place::new();
    for verb in ["allow", "block"] {
        place.run(&["network", verb, "nobody"]).exited(125);
        let wrong = place.run(&["network", verb, "nobody", "fine.test", "http://x/"]);
        wrong.failed(&format!("load {verb} rule `http://x/`"));
        let nobody = place.run(&["network", verb, "nobody", "fine.test"]);
        nobody.failed("nobody");
    }
    let arguments = [
        "network",
        "log",
        "--follow",
        "--json",
        "--blocked",
        "nobody",
    ];
    place.run(&arguments).failed("nobody");
    place.run(&["network", "log"]).exited(125);
    place.assert_clean();
}

#[test]
fn what_does_not_exist_is_named() {
    let place = Place::new();
    place
        .run(&["run", "--rm", "shell", "/no/such/folder", "--", "true"])
        .failed("use the workspace /no/such/folder: No such file");
    place
        .run(&["run", "--rm", "--image", "/no/such/image", "shell"])
        .failed("use the image /no/such/image: there is no such folder or file");
    place.run(&["exec", "nobody", "true"]).failed("nobody");
    place.run(&["stop", "nobody"]).failed("nobody");
    place.run(&["rm", "-f", "nobody"]).failed("nobody");
    place
        .run(&["cp", "nobody:/etc/passwd", "."])
        .failed("nobody");
    place.run(&["cp", "a", "b"]).failed("NAME:PATH");
    place.assert_clean();
}

#[test]
fn neither_home_nor_root_becomes_a_workspace_by_accident() {
    let place = Place::new();
    for (folder, reason) in [
        (place.path("home"), "your home folder"),
        ("/".into(), "the root"),
    ] {
        let mut command = place.tool(&["run", "--rm", "shell"]);
        let output = command.current_dir(folder).output().unwrap();
        crate::support::Ended(output).failed(reason);
    }
    place.assert_clean();
}

#[test]
fn check_tells_by_its_exit_status_and_says_why() {
    let place = Place::new();
    let check = |arguments: &[&str]| place.run(&[&["network", "check"], arguments].concat());
    let allowed = check(&["--policy", "allow", "https://1.1.1.1/"]).exited(0);
    assert_eq!(allowed.stdout(), "allowed: policy: allow\n");
    let denied = check(&["https://example.com"]).exited(1);
    assert!(
        denied
            .stdout()
            .starts_with("denied: no rule allows this host")
    );
    let metadata = check(&["--policy", "allow", "http://169.254.169.254/"]).exited(1);
    assert!(
        metadata.stdout().contains("not a public one"),
        "{metadata:?}"
    );
    let rule = check(&["--allow-host", "1.1.1.1", "1.1.1.1:443"]).exited(0);
    assert!(rule.stdout().contains("rule: allow 1.1.1.1"), "{rule:?}");
    let blocked = check(&["--policy", "allow", "--block-host", "1.1.1.1", "1.1.1.1"]).exited(1);
    assert!(blocked.stdout().contains("block 1.1.1.1"), "{blocked:?}");
    let file = place.path("rules.toml");
    std::fs::write(&file, "allow = [{ host = '1.1.1.1' }]").unwrap();
    let file = file.to_str().unwrap();
    check(&["--rules-file", file, "1.1.1.1"]).failed("line 1, column 10");
    std::fs::write(
        file,
        "allow = [{ host = 'a.test', methods = ['GET'] }, '1.1.1.1']",
    )
    .unwrap();
    check(&["--rules-file", file, "1.1.1.1"]).exited(0);
    let post = check(&["--rules-file", file, "POST http://a.test/x"]).exited(1);
    assert!(
        post.stdout().contains("not this method and path"),
        "{post:?}"
    );
    for (preset, status) in [("locked", 1), ("balanced", 1), ("open", 0)] {
        check(&["--policy", preset, "http://1.1.1.1/"]).exited(status);
    }
    check(&["gopher://example.com"]).failed("neither http nor https");
    check(&["nobody", "https://example.com"]).failed("nobody");
}

#[test]
fn doctor_reports_as_json_and_as_text() {
    let place = Place::new();
    let report = place.run(&["doctor", "--json"]).exited(0).json();
    assert_eq!(report["usable"], true, "{report:#}");
    assert_eq!(report["backends"][0]["name"], "qemu");
    assert!(report["programs"].as_array().unwrap().len() > 3);
    assert_eq!(
        report["folders"]["state"],
        place.path("state/sandbox").to_str().unwrap()
    );
    let text = place.run(&["doctor"]).exited(0);
    // Without a terminal there are no colours, and no line for a person who waits.
    assert!(text.stdout().contains("  ok      qemu "), "{text:?}");
    assert_eq!(text.stderr(), "");
}

#[test]
fn an_empty_list_is_empty_json() {
    let place = Place::new();
    assert_eq!(place.run(&["ls", "--json"]).exited(0).stdout(), "[]\n");
    let listed = place.run(&["ls"]).exited(0).stdout();
    assert!(listed.starts_with("NAME"), "{listed}");
    place.run(&["rm", "-f", "--all"]).exited(0);
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = place.tool(&["ls"]);
    let output = command.stdout(Stdio::from(writer)).output().unwrap();
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    assert_eq!(output.stderr, b"");
}

#[test]
fn a_log_filter_that_is_none_is_no_failure() {
    let place = Place::new();
    write(place.project().join("x"), "");
    let mut command = place.tool(&["ls"]);
    let output = command.env("SANDBOX_LOG", "=,=").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn e48_the_users_own_rules_stand_above_those_of_the_arguments() {
    let place = Place::new();
    let check = |arguments: &[&str]| place.run(&[&["network", "check"], arguments].concat());
    let folder = place.path("home/.config/sandbox");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("policy.toml");
    std::fs::write(&file, "block = ['1.1.1.1']\nallow = ['8.8.8.8']\n").unwrap();
    let open = ["--policy", "allow", "--allow-host", "1.1.1.1", "1.1.1.1"];
    let blocked = check(&open).exited(1);
    let told = blocked.stdout();
    assert!(told.contains("user: block 1.1.1.1"), "{told}");
    let allowed = check(&["8.8.8.8"]).exited(0).stdout();
    assert!(allowed.contains("rule: user: allow 8.8.8.8"), "{allowed}");
    std::fs::write(&file, "block = ['1.1.1.1']\nallow = ['*']\n").unwrap();
    let wrong = check(&open).failed("line 2").stderr();
    assert!(
        wrong.contains("home/.config/sandbox/policy.toml"),
        "{wrong}"
    );
    std::fs::remove_file(&file).unwrap();
    check(&open).exited(0);
}

#[test]
fn e34_check_says_which_way_and_asks_no_proxy() {
    let place = Place::new();
    // Whoever connected to it would wait.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let check = |arguments: &[&str]| {
        let open = ["network", "check", "--policy", "allow"];
        let mut command = place.tool(&[&open, arguments].concat());
        let url = format!("http://me:s3cret@{at}");
        let output = command.env("https_proxy", url).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let through = format!("through http://{at}");
    let told = check(&["https://1.1.1.1/"]);
    assert!(
        told.starts_with("allowed: policy: allow\nreached: through "),
        "{told}"
    );
    assert!(
        told.contains(&through) && told.contains("the address that was judged"),
        "{told}"
    );
    assert!(!told.contains("s3cret"), "{told}");
    // No variable is for plain HTTP.
    let told = check(&["http://1.1.1.1/"]);
    assert!(
        told.contains("reached: from this host, whose proxy is not for"),
        "{told}"
    );
    let told = check(&["--upstream-proxy", "none", "https://1.1.1.1/"]);
    assert_eq!(told, "allowed: policy: allow\n");
    let told = check(&["--upstream-proxy-names", "https://wiki.corp/"]);
    assert!(
        told.starts_with("denied: ") && told.contains("public suffix"),
        "{told}"
    );
    assert!(listener.accept().is_err(), "nobody came");
}

#[test]
fn e34_the_hosts_proxy_is_told_and_its_login_is_not() {
    let place = Place::new();
    let doctor = |value: &str| {
        let mut command = place.tool(&["doctor", "--json"]);
        let output = command.env("https_proxy", value).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let told = doctor("http://me:s3cret@proxy.test:3128");
    assert!(told.contains("http://proxy.test:3128"), "{told}");
    assert!(!told.contains("s3cret"), "{told}");
    let told = doctor("gopher://me:s3cret@proxy.test");
    assert!(
        told.contains("https_proxy") && !told.contains("s3cret"),
        "{told}"
    );
    for (proxy, reason) in [
        ("http://me:s3cret@proxy.test", "file:PATH"),
        ("gopher://me:s3cret@proxy.test", "scheme"),
    ] {
        let arguments = [
            "create",
            "--no-workspace",
            "--upstream-proxy",
            proxy,
            "shell",
        ];
        let failed = place.run(&arguments).failed(reason);
        assert!(!failed.stderr().contains("s3cret"), "{failed:?}");
    }
    place.assert_clean();
}
