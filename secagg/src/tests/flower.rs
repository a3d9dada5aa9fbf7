//! The figures of Flower's own unit tests; `tests/flower/main.rs` lists where each is met.

use serde_json::Value;

use super::*;

const STAGES: [&str; 4] = ["setup", "share_keys", "collect_masked_vectors", "unmask"];

fn facts(algo: &str) -> Vec<Value> {
    let all = include_str!("../../../tests/flower/unit_tests.json");
    let all: Value = serde_json::from_str(all).unwrap();
    let mut facts = all["tests"].as_array().unwrap().clone();
    facts.retain(|fact| fact["algo"] == algo);
    assert!(!facts.is_empty(), "{algo}");
    facts
}

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

/// Secrets here are keys and seeds, 32 bytes each: shorter ones are filled up.
fn secret(text: &[u8]) -> Secret {
    let mut bytes = [0; 32];
    bytes[..text.len()].copy_from_slice(text);
    Secret::new(bytes)
}

/// Every choice of so many of the shares.
fn choices(shares: &[Share], count: usize) -> Vec<Vec<&Share>> {
    let chosen = |set: u32| (0..shares.len()).filter(move |at| set >> at & 1 == 1);
    let sets = (0..1_u32 << shares.len()).filter(|set| set.count_ones() as usize == count);
    sets.map(|set| chosen(set).map(|at| &shares[at]).collect()).collect()
}

#[test]
fn shares_give_the_secret_or_nothing() {
    for fact in facts("shamir") {
        let (threshold, count) = (number(&fact["threshold"]), number(&fact["shares"]));
        let secrets: Vec<Secret> = if let Some(text) = fact["secret_utf8"].as_str() {
            vec![secret(text.as_bytes())]
        } else {
            let lengths = fact["secret_len"].as_array().unwrap().iter();
            lengths.map(|length| secret(&vec![b'x'; number(length)])).collect()
        };
        for secret in secrets {
            let mut shares = split(&secret, threshold, count, &Secret::new([9; 32])).unwrap();
            if fact["given"].is_u64() {
                let found = number(&fact["given"]);
                for few in choices(&shares, found) {
                    assert_eq!(
                        recover(&few, threshold),
                        Err(ShareError::TooFew { found, threshold })
                    );
                    assert_ne!(recover(&few, found), Ok(secret.clone()));
                }
                continue;
            }
            let tampered = fact["tamper"].is_string();
            if tampered {
                assert_eq!(fact["tamper"], "byte 4 of share 0 xor 0xff");
                shares[0].values[4] ^= 0xff;
            }
            for some in choices(&shares, threshold) {
                let right = !tampered || some[0].point != shares[0].point;
                assert_eq!(recover(&some, threshold) == Ok(secret.clone()), right, "{fact}");
            }
        }
    }
}

/// What a device is asked in a session, and other questions in the place of these.
struct Asked {
    rosters: [Roster; 2],
    inboxes: [Inbox; 2],
    requests: [UnmaskRequest; 2],
}

impl Asked {
    fn new() -> Self {
        let mut world = World::complete(6);
        let all = [0, 1, 2, 3, 4, 5];
        world.share(&all);
        world.server.close_shares().unwrap();
        let roster = world.roster();
        let inbox = world.server.inbox(Party(0)).unwrap();
        world.mask(&all[..5]);
        world.server.close_masked().unwrap();
        let request = world.server.unmask_request(Party(0)).unwrap();
        let other_roster = Roster { purpose: "another".to_owned(), ..roster.clone() };
        let other_inbox = Inbox { session: inbox.session, sealed: inbox.sealed[1..].to_vec() };
        let other_request = UnmaskRequest {
            survivors: vec![Party(1), Party(2), Party(3)],
            dropped: vec![Party(4), Party(5)],
            ..request.clone()
        };
        Self {
            rosters: [roster, other_roster],
            inboxes: [inbox, other_inbox],
            requests: [request, other_request],
        }
    }

    /// Whether a device answers at this stage, asked as the others are or in another way.
    fn answers(&self, device: &mut Client, stage: usize, which: usize) -> bool {
        match STAGES[stage] {
            "setup" => {
                // A session of its own.
                let before = device.keys();
                *device = client(100);
                device.keys() != before
            }
            "share_keys" => device.share(&self.rosters[which]).is_ok(),
            "collect_masked_vectors" => device.mask(&self.inboxes[which]).is_ok(),
            _ => device.unmask(&self.requests[which]).is_ok(),
        }
    }
}

/// A device goes from stage to stage in order, and begins anew with other keys at any of them.
/// Unlike Flower's, it answers what it has answered once again, and in the same way.
#[test]
fn stages_follow_each_other() {
    let fact = &facts("secagg_state_machine")[0];
    assert_eq!(fact["stages"], serde_json::json!(STAGES));
    let asked = Asked::new();
    for (from, from_name) in STAGES.iter().enumerate() {
        for (to, to_name) in STAGES.iter().enumerate() {
            let at = || {
                let mut device = client(0);
                assert!((1..=from).all(|stage| asked.answers(&mut device, stage, 0)));
                device
            };
            let pair = serde_json::json!([from_name, to_name]);
            let valid = fact["valid"].as_array().unwrap().contains(&pair);
            let before = to > 0 && to <= from;
            let which = usize::from(before);
            assert_eq!(asked.answers(&mut at(), to, which), valid, "{pair}");
            if before {
                assert!(asked.answers(&mut at(), to, 0), "{pair}, the same again");
            }
        }
    }
}
