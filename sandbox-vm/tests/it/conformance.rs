//! Every backend passes the same suite.

use sandbox_vm::Hypervisor;
use sandbox_vm::backend::plain::Plain;
use sandbox_vm::conformance::{Options, run};
use sandbox_vm::hypervisor::{HypervisorExt, Isolation, MachineSpec};
use tokio::io::AsyncReadExt;

use crate::support::{self, command, soon};

/// Gigabytes take minutes where a processor is emulated.
fn options(flood_mib: u64) -> Options {
    let slow = std::env::var_os("SANDBOX_SLOW").is_some();
    Options::default().with_flood_mib(if slow { 2048 } else { flood_mib })
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_processes_conform() {
    let folder = support::folder();
    let mut spec = MachineSpec::new("plain", folder.path().join("m"));
    spec.setup.capture = Some(support::capture());
    let plain = Plain::new(support::helper());
    let report = run(&plain, &spec, &options(256)).await.unwrap();
    println!("{report}");
    assert!(report.passed(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn microvms_conform() {
    let folder = support::folder();
    let spec = support::with_default_image(folder.path()).await;
    let report = run(&support::microvm(), &spec, &options(64)).await.unwrap();
    println!("{report}");
    assert!(report.passed(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_processes_die_with_their_owner() {
    let folder = support::folder();
    let plain = Plain::new(support::helper());
    assert_eq!(plain.capabilities().isolation, Isolation::None);
    for way in ["kill", "drop", "power off"] {
        let spec = MachineSpec::new("plain", folder.path().join("m"));
        let patience = std::time::Duration::from_secs(20);
        let (machine, agent) = plain.boot(&spec, patience).await.unwrap();
        // One that left the command's session and its process tree, and one that ignores requests.
        let script = "setsid sh -c 'trap \"\" TERM HUP; echo $$; sleep 1000 & wait; sleep 1000' \
                      2>/dev/null & sleep 1000";
        let mut running = agent.exec(command(&["sh", "-c", script])).await.unwrap();
        let mut line = [0; 16];
        let mut stdout = running.stdout.take().unwrap();
        let count = stdout.read(&mut line).await.unwrap();
        let text = String::from_utf8_lossy(&line[..count]).into_owned();
        let pids = [
            running.pid,
            text.trim().parse().unwrap(),
            machine.facts().pid.unwrap(),
        ];
        assert!(pids.iter().all(|pid| support::runs(*pid)));
        let ended = machine.wait();
        match way {
            "kill" => machine.kill().await.unwrap(),
            "power off" => agent.power_off().await.unwrap(),
            _ => drop((machine, agent, running)),
        }
        assert_eq!(ended.await.failure, None, "{way}");
        assert!(!spec.folder.exists(), "{way}");
        for pid in pids {
            soon(way, || !support::runs(pid)).await;
        }
    }
}
