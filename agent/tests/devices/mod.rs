//! Which devices a container may use. The one that is tried is /dev/fuse: hosts and guests have it, opening it changes
//! nothing, and needs no capability.

use serde_json::{Value, json};
use stockade_agent_protocol::agent::{CreateContainerRequest, Device, UpdateContainerRequest};
use stockade_agent_protocol::oci_convert::{resources_to_proto, spec_to_proto};

use crate::harness::*;
use crate::text_of;

/// Numbers that no driver has on any host.
const NOWHERE: (u32, u32) = (4000, 77);

fn deny_all() -> Value {
    json!({"allow": false, "access": "rwm"})
}

fn fuse(access: &str) -> Value {
    json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": access})
}

/// A container that may make nodes, and has these rules.
fn with_rules(args: &[&str], rules: Value) -> Value {
    let mut spec = spec(args);
    for set in ["bounding", "effective", "permitted"] {
        let list = spec["process"]["capabilities"][set].as_array_mut().expect("capabilities");
        list.push(json!("CAP_MKNOD"));
    }
    spec["linux"]["resources"] = json!({ "devices": rules });
    spec
}

/// Tries to open the device for each access, by a node of its own.
const TRY: &str = "cd /tmp; [ -e fuse ] || mknod fuse c 10 229 || exit 1; \
    (true < fuse) 2>/dev/null && echo read; (true >> fuse) 2>/dev/null && echo write; (true <> fuse) 2>/dev/null && echo both";

async fn tried(agent: &Agent, id: &str) -> String {
    let mut wanted = with_rules(&["sh", "-c", TRY], json!([]))["process"].clone();
    wanted["cwd"] = json!("/");
    let exec = agent.exec(id, wanted).await.expect("added");
    let output = agent.output(id, &exec).await;
    assert_eq!(output.stderr, "", "the node is made");
    output.stdout.replace('\n', " ").trim().to_owned()
}

async fn update(agent: &Agent, id: &str, resources: Value) -> Result<(), ttrpc::Error> {
    let resources = serde_json::from_value(resources).expect("resources");
    let request = UpdateContainerRequest {
        container_id: id.to_owned(),
        resources: Some(resources_to_proto(&resources).expect("converts")).into(),
        ..Default::default()
    };
    agent.calls.update_container(context(), &request).await.map(drop)
}

pub(crate) fn devices_open_as_the_rules_say() {
    block_on(async {
        let agent = agent().await;
        for (rules, wanted) in [
            (json!([deny_all()]), ""),
            (json!([]), ""),
            (json!([deny_all(), fuse("r")]), "read"),
            (json!([deny_all(), fuse("rw")]), "read write both"),
            (json!([deny_all(), fuse("r"), fuse("w")]), "read write both"),
            (json!([{"allow": true, "access": "rwm"}]), "read write both"),
            (
                json!([{"allow": true, "access": "rwm"}, {"allow": false, "type": "c", "major": 10, "access": "w"}]),
                "read",
            ),
        ] {
            let id = agent.run(&with_rules(&["sleep", "1000"], rules.clone())).await;
            assert_eq!(tried(&agent, &id).await, wanted, "{rules}");
            agent.remove(&id).await;
        }
        let script = format!(
            "{TRY}; head -c 2 /dev/zero | od -An -tx1; head -c 2 /dev/urandom | wc -c; echo x > /dev/null; echo x > /dev/full"
        );
        let output = agent.run_to_end(&with_rules(&["sh", "-c", &script], json!([deny_all()]))).await;
        assert_eq!(output.stdout, " 00 00\n2\n", "{}", output.stderr);
        assert!(output.stderr.contains("No space left"), "{}", output.stderr);
    });
}

pub(crate) fn device_rules_can_be_replaced() {
    block_on(async {
        let agent = agent().await;
        let id = agent.run(&with_rules(&["sleep", "1000"], json!([deny_all()]))).await;
        assert_eq!(tried(&agent, &id).await, "");
        for (rules, wanted) in [
            (json!([deny_all(), fuse("rw")]), "read write both"),
            // No rules are no change.
            (json!([]), "read write both"),
            (json!([deny_all(), fuse("r")]), "read"),
            (json!([deny_all()]), ""),
            (json!([{"allow": true, "access": "rwm"}]), "read write both"),
        ] {
            update(&agent, &id, json!({ "devices": rules })).await.expect("updated");
            assert_eq!(tried(&agent, &id).await, wanted, "{rules}");
        }
        let error = text_of(update(&agent, &id, json!({"devices": [{"allow": true, "access": "x"}]})).await);
        assert!(error.contains("linux.resources.devices[0]"), "{error}");
        assert_eq!(tried(&agent, &id).await, "read write both", "a refused change is none");
        agent.remove(&id).await;
    });
}

pub(crate) fn device_rules_that_cannot_be_used_are_refused() {
    block_on(async {
        let agent = agent().await;
        let bad = json!([deny_all(), {"allow": true, "type": "b", "access": "rwx"}]);
        let error = text_of(agent.create(&with_rules(&["true"], bad)).await);
        assert!(error.contains("linux.resources.devices[1]") && error.contains("\"rwx\""), "{error}");
        // As many as there may be, beside those that are always there, and each one a case of its own.
        let many = |count: u32| {
            let one = |n: u32| {
                let access = ["r", "w", "rw", "m"][n as usize % 4];
                json!({"allow": !n.is_multiple_of(3), "type": "c", "major": 200 + n % 50, "minor": n, "access": access})
            };
            let mut rules: Vec<Value> = (1..count).map(one).collect();
            rules.push(fuse("r"));
            json!(rules)
        };
        let id = agent.run(&with_rules(&["sleep", "1000"], many(480))).await;
        assert_eq!(tried(&agent, &id).await, "read");
        agent.remove(&id).await;
        let error = text_of(agent.create(&with_rules(&["true"], many(1000))).await);
        assert!(error.contains("more than 512 rules"), "{error}");
    });
}

/// Creates and starts a container that is given /dev/fuse as /dev/mine.
async fn with_fuse(agent: &Agent, spec: &Value) -> String {
    let id = new_id();
    let spec = serde_json::from_value(spec.clone()).expect("a specification");
    let given =
        Device { vm_path: "/dev/fuse".to_owned(), container_path: "/dev/mine".to_owned(), ..Default::default() };
    let request = CreateContainerRequest {
        container_id: id.clone(),
        OCI: Some(spec_to_proto(&spec).expect("converts")).into(),
        devices: vec![given],
        ..Default::default()
    };
    agent.calls.create_container(context(), &request).await.expect("created");
    agent.start(&id).await.expect("started");
    id
}

pub(crate) fn devices_of_the_supervisor_have_the_guests_numbers() {
    block_on(async {
        let agent = agent().await;
        let (major, minor) = NOWHERE;
        let of_host = json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "r"});
        let listed = json!([{"path": "/dev/mine", "type": "c", "major": major, "minor": minor}]);
        // Named by a rule, named by none, and not in the specification's list.
        for (list, rules, wanted) in [
            (&listed, json!([deny_all(), of_host.clone()]), "a:e5 read"),
            (&listed, json!([deny_all()]), "a:e5 read write both"),
            (&json!([]), json!([deny_all()]), "a:e5 read write both"),
        ] {
            let script = "cd /dev; stat -c %t:%T mine; \
                (true < mine) && echo read; (true >> mine) && echo write; (true <> mine) && echo both";
            let mut spec = with_rules(&["sh", "-c", script], rules.clone());
            spec["linux"]["devices"] = list.clone();
            let id = with_fuse(&agent, &spec).await;
            let output = agent.output(&id, "").await;
            assert_eq!(output.stdout.replace('\n', " ").trim(), wanted, "{rules}: {}", output.stderr);
            agent.remove(&id).await;
        }
        // The rules of an update name the host's numbers too.
        let mut spec = with_rules(&["sleep", "1000"], json!([deny_all()]));
        spec["linux"]["devices"] = listed;
        let id = with_fuse(&agent, &spec).await;
        assert_eq!(tried(&agent, &id).await, "read write both");
        update(&agent, &id, json!({"devices": [deny_all(), of_host]})).await.expect("updated");
        assert_eq!(tried(&agent, &id).await, "read");
        agent.remove(&id).await;
    });
}
