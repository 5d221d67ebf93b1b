//! More than one sandbox.

use std::time::Instant;

use stockade_tests::harness::{Bundle, HostState, Stockade};

#[test]
fn two_sandboxes_live_side_by_side_and_know_nothing_of_each_other() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let ids = [stockade.id("one"), stockade.id("two")];
    let bundles = [0, 1].map(|_| Bundle::shell("while :; do sleep 1; done").unwrap());
    let creating: Vec<_> =
        ids.iter().zip(&bundles).map(|(id, bundle)| stockade.start_create(id, bundle, &[])).collect();
    for creation in creating {
        let _ = creation.wait(std::time::Duration::from_secs(90)).ok();
    }
    for (number, id) in ids.iter().enumerate() {
        let _ = stockade.start(id).ok();
        let _ = stockade.exec_shell(id, &format!("echo {number} >/tmp/number; hostname")).ok();
    }
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(stockade.exec_shell(id, "cat /tmp/number").ok().text(), format!("{number}\n"));
    }
    assert_eq!(stockade.call(["list", "--quiet"]).ok().text().lines().count(), 2);
    assert_eq!(stockade.monitors().len(), 2);
    let _ = stockade.delete(&ids[0], &["--force"]).ok();
    assert_eq!(stockade.exec_shell(&ids[1], "echo still here").ok().text(), "still here\n");
    let _ = stockade.delete(&ids[1], &["--force"]).ok();
    before.assert_same(&stockade);
}

#[test]
fn twenty_sandboxes_created_and_deleted_in_a_row_leave_nothing() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let bundle = Bundle::shell("true").unwrap();
    for round in 0..20 {
        let id = stockade.id("row");
        let begin = Instant::now();
        let _ = stockade.create(&id, &bundle, &[]).ok();
        let _ = stockade.delete(&id, &[]).ok();
        println!("round {round}: {:?}", begin.elapsed());
        before.assert_same(&stockade);
    }
}
