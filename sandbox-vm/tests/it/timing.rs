use crate::support;
use sandbox_vm::{Agent, hypervisor::Hypervisor};
use std::time::Instant;
#[tokio::test(flavor = "multi_thread")]
async fn timing() {
    let folder = support::folder();
    let qemu = support::microvm();
    let mut spec = support::with_default_image(folder.path()).await;
    for i in 0..5 {
        spec.folder = folder.path().join(format!("m{i}"));
        let t = Instant::now();
        let machine = qemu.start(&spec).await.unwrap();
        let a = t.elapsed();
        let agent = Agent::connect(machine.connect().await.unwrap())
            .await
            .unwrap();
        let b = t.elapsed();
        agent.setup(&spec.setup).await.unwrap();
        let c = t.elapsed();
        let mut r = agent
            .exec(support::command(&["/bin/echo", "x"]))
            .await
            .unwrap();
        let mut o = r.stdout.take().unwrap();
        tokio::io::AsyncReadExt::read_u8(&mut o).await.unwrap();
        let d = t.elapsed();
        let mut r = agent
            .exec(support::command(&["/bin/echo", "x"]))
            .await
            .unwrap();
        let mut o = r.stdout.take().unwrap();
        tokio::io::AsyncReadExt::read_u8(&mut o).await.unwrap();
        println!(
            "start {a:?} hello {:?} setup {:?} exec {:?} exec2 {:?} {:?}",
            b - a,
            c - b,
            d - c,
            t.elapsed() - d,
            machine.facts().started
        );
        machine.kill().await.unwrap();
        // the same disk again
    }
}
