//! What a server, or a device, tries, and what it gets.

use super::*;
use crate::seal::Sealed;

const ALL: [usize; 6] = [0, 1, 2, 3, 4, 5];

type SealedShares = Vec<(Party, Sealed)>;

/// Six devices after the third stage; the last one dropped out before it.
fn masked() -> (World, Vec<u32>) {
    let mut world = World::complete(6);
    world.share(&ALL);
    world.server.close_shares().unwrap();
    let sum = world.mask(&ALL[..5]);
    world.server.close_masked().unwrap();
    (world, sum)
}

#[test]
fn both_shares_of_a_device_are_refused() {
    let (mut world, _) = masked();
    let request = world.server.unmask_request(Party(0)).unwrap();
    // At once.
    let both = UnmaskRequest { dropped: vec![Party(4), Party(5)], ..request.clone() };
    assert_eq!(world.clients[0].unmask(&both), Err(Refusal::BothShares(Party(4))));
    // One after the other, whichever comes first, also from a client that was made anew and
    // told the same.
    world.clients[0].unmask(&request).unwrap();
    let other = UnmaskRequest {
        survivors: vec![Party(1), Party(2), Party(3)],
        dropped: vec![Party(4), Party(5)],
        ..request.clone()
    };
    let second = Err(Refusal::SecondQuestion("a request to unmask"));
    assert_eq!(world.clients[0].unmask(&other), second);
    assert!(world.clients[0].unmask(&request).is_ok());
    world.clients[1]
        .unmask(&UnmaskRequest {
            survivors: vec![Party(0), Party(2), Party(3), Party(5)],
            dropped: vec![Party(4)],
            ..request
        })
        .unwrap();
    let right = world.server.unmask_request(Party(1)).unwrap();
    assert_eq!(world.clients[1].unmask(&right), second);
}

#[test]
fn a_server_that_tells_devices_different_stories_gets_neither_secret() {
    // For half of the neighbours the victim dropped out, for the others it did not: the shares
    // of neither kind reach the threshold.
    for devices in 3..40 {
        for topology in [
            Topology::complete(devices, Risk { drop_out: 0.0, colluding: 0.0 }),
            Topology::of(devices, Risk { drop_out: 0.1, colluding: 0.0 }),
        ] {
            let Topology { degree, threshold } = topology.unwrap();
            assert!(degree.div_ceil(2) <= threshold && degree / 2 < threshold);
            assert!(degree < 2 * threshold, "{degree} {threshold}");
        }
    }
}

#[test]
fn requests_of_another_kind_are_refused() {
    let (mut world, _) = masked();
    let good = world.server.unmask_request(Party(0)).unwrap();
    let session = SessionId([3; 32]);
    let of = |survivors: &[u32], dropped: &[u32]| UnmaskRequest {
        survivors: survivors.iter().copied().map(Party).collect(),
        dropped: dropped.iter().copied().map(Party).collect(),
        ..good.clone()
    };
    let expected = good.session;
    for (request, refusal) in [
        (
            UnmaskRequest { session, ..good.clone() },
            Refusal::AnotherSession { found: session, expected },
        ),
        (of(&[1, 2, 3, 4], &[]), Refusal::Incomplete { found: 4, expected: 5 }),
        (of(&[1, 2], &[3, 4, 5]), Refusal::TooFew { found: 2, threshold: 3 }),
        (of(&[1, 2, 3, 4, 9], &[5]), Refusal::Stranger(Party(9))),
        (of(&[0, 1, 2, 3, 4], &[5]), Refusal::Stranger(Party(0))),
        (of(&[1, 1, 2, 3, 4], &[5]), Refusal::Stranger(Party(1))),
        (of(&[1, 2, 4, 3], &[5]), Refusal::Stranger(Party(3))),
    ] {
        assert_eq!(world.clients[0].unmask(&request), Err(refusal));
    }
    assert!(world.clients[0].unmask(&good).is_ok());
}

#[test]
fn stages_come_in_order_and_once() {
    let mut world = World::complete(6);
    let roster = world.roster();
    let session = roster.session();
    let inbox = Inbox { session, sealed: Vec::new() };
    let request = UnmaskRequest { session, survivors: Vec::new(), dropped: Vec::new() };
    let one = &mut world.clients[0];
    assert_eq!(one.mask(&inbox).unwrap_err(), Refusal::TooEarly("a roster"));
    assert_eq!(one.unmask(&request), Err(Refusal::TooEarly("a roster")));
    one.share(&roster).unwrap();
    assert_eq!(one.unmask(&request), Err(Refusal::TooEarly("an inbox")));
    // Another roster with the same device in it.
    let other = Roster { purpose: "another".to_owned(), ..roster.clone() };
    assert_eq!(one.share(&other), Err(Refusal::SecondQuestion("a roster")));
    let few = Refusal::TooFew { found: 0, threshold: 3 };
    assert_eq!(one.mask(&inbox).unwrap_err(), few);
    world.share(&ALL);
    assert_eq!(world.server.masked(Party(0)), Err(ServerError::AnotherStage));
    assert_eq!(world.server.inbox(Party(0)), None);
    assert_eq!(world.server.finish().unwrap_err(), ServerError::AnotherStage);
    world.server.close_shares().unwrap();
    assert_eq!(world.server.close_shares(), Err(ServerError::AnotherStage));
    let late = world.clients[0].share(&roster).unwrap();
    assert_eq!(world.server.shares(Party(0), &late), Err(ServerError::AnotherStage));
    // Another inbox after the first: with fewer neighbours the masks would be others.
    let whole = world.server.inbox(Party(0)).unwrap();
    let part = Inbox { session, sealed: whole.sealed[1..].to_vec() };
    world.clients[0].mask(&whole).unwrap();
    let second = Refusal::SecondQuestion("an inbox");
    assert_eq!(world.clients[0].mask(&part).unwrap_err(), second);
}

#[test]
fn sealed_shares_cannot_be_changed_or_moved() {
    let mut world = World::complete(6);
    world.share(&ALL);
    world.server.close_shares().unwrap();
    let good = world.server.inbox(Party(0)).unwrap();
    let refusal = |change: &dyn Fn(&mut SealedShares)| {
        let mut inbox = good.clone();
        change(&mut inbox.sealed);
        let mut client = client(0);
        client.share(&world.server.roster().unwrap().clone()).unwrap();
        client.mask(&inbox).unwrap_err()
    };
    assert_eq!(refusal(&|sealed| sealed[2].1.0[5] ^= 1), Refusal::Tampered(Party(3)));
    assert_eq!(refusal(&|sealed| sealed[2].1 = sealed[1].1), Refusal::Tampered(Party(3)));
    assert_eq!(refusal(&|sealed| sealed[1].0 = Party(9)), Refusal::Stranger(Party(3)));
    assert_eq!(refusal(&|sealed| sealed[4].0 = Party(9)), Refusal::Stranger(Party(9)));
    assert_eq!(refusal(&|sealed| sealed.swap(0, 1)), Refusal::Stranger(Party(1)));
    // What was sealed for another device.
    let for_another = world.server.inbox(Party(1)).unwrap().sealed[1].1;
    assert_eq!(refusal(&|sealed| sealed[1].1 = for_another), Refusal::Tampered(Party(2)));
    let session = SessionId([9; 32]);
    let foreign = Inbox { session, ..good.clone() };
    let expected = good.session;
    assert_eq!(
        world.clients[0].mask(&foreign).unwrap_err(),
        Refusal::AnotherSession { found: session, expected }
    );
}

#[test]
fn a_forged_share_is_recognised_and_done_without() {
    let (mut world, mut sum) = masked();
    for index in 0..5 {
        let request = world.server.unmask_request(party(index)).unwrap();
        let mut unmasking = world.clients[index].unmask(&request).unwrap();
        if index == 1 {
            unmasking.survivors[0].0[31] ^= 0x80;
            unmasking.dropped[0].0[5] ^= 1;
        }
        world.server.unmasking(party(index), &unmasking).unwrap();
    }
    world.server.finish().unwrap().apply(0, &mut sum);
    assert_eq!(sum, world.plain_sum(&ALL[..5]));
    // With too many of them there is no sum.
    let (mut world, _) = masked();
    for index in 0..5 {
        let request = world.server.unmask_request(party(index)).unwrap();
        let mut unmasking = world.clients[index].unmask(&request).unwrap();
        unmasking.dropped[0].0[5] ^= u8::try_from(index).unwrap();
        world.server.unmasking(party(index), &unmasking).unwrap();
    }
    assert_eq!(world.server.finish().unwrap_err(), ServerError::Forged(Party(5)));
}

/// 2^255 - 19, another spelling of 0.
const PRIME: [u8; 32] = {
    let mut bytes = [0xff; 32];
    (bytes[0], bytes[31]) = (0xed, 0x7f);
    bytes
};

#[test]
fn a_key_that_is_another_devices_or_agrees_on_nothing_is_refused_by_both() {
    let mut server = Server::new(String::new(), 1, Risk::default());
    let (one, other) = (client(1).keys(), client(2).keys());
    server.keys(1, one).unwrap();
    server.keys(1, one).unwrap();
    let taken = ServerError::TakenKey { device: 2, key: one.masking, owner: 1 };
    for keys in [
        Keys { masking: one.masking, ..other },
        Keys { sealing: one.masking, ..other },
        Keys { sealing: one.masking, masking: one.masking },
    ] {
        assert_eq!(server.keys(2, keys), Err(taken.clone()));
    }
    for low in [[0; 32], PRIME] {
        let low = PublicKey(low);
        for keys in [Keys { masking: low, ..other }, Keys { sealing: low, ..other }] {
            assert_eq!(server.keys(2, keys), Err(ServerError::Key(AgreementError(low))));
        }
    }
    let twice = Keys { sealing: other.sealing, masking: other.sealing };
    let repeated = ServerError::Roster(RosterError::RepeatedKey(other.sealing));
    assert_eq!(server.keys(2, twice), Err(repeated));
    // What was refused is nobody's, and the session goes on.
    server.keys(2, other).unwrap();
    server.keys(3, client(3).keys()).unwrap();
    assert_eq!(server.close_keys().map(|roster| roster.devices.len()), Ok(3));
    let mut server = Server::new(String::new(), 1, Risk::default());
    server.keys(1, one).unwrap();
    assert_eq!(server.keys(1, other), Err(ServerError::Contradiction(1)));
    // A server that does not mind meets devices that do.
    let mut roster = World::complete(6).roster();
    roster.devices[3].masking = roster.devices[2].masking;
    let error = RosterError::RepeatedKey(roster.devices[2].masking);
    assert_eq!(client(0).share(&roster), Err(Refusal::Roster(error)));
}

#[test]
fn rosters_that_hide_nothing_are_refused() {
    let good = World::complete(6).roster();
    for (degree, threshold, devices) in
        [(5, 2, 6), (5, 6, 6), (3, 2, 6), (6, 4, 6), (1, 1, 2), (0, 0, 1), (4, 2, 6)]
    {
        let topology = Topology { degree, threshold };
        let devices = good.devices[..devices].to_vec();
        let error = RosterError::Topology { devices: devices.len(), topology };
        let roster = Roster { topology, devices, ..good.clone() };
        assert_eq!(client(0).share(&roster), Err(Refusal::Roster(error)));
    }
    assert_eq!(client(9).share(&good), Err(Refusal::NotIncluded));
    // A key that nobody has the private one of.
    let mut low = good;
    low.devices[4].sealing = PublicKey([0; 32]);
    let refusal = Refusal::Key(AgreementError(PublicKey([0; 32])));
    assert_eq!(client(0).share(&low), Err(refusal));
}

#[test]
fn devices_with_different_rosters_are_in_different_sessions() {
    let mut world = World::complete(6);
    // The server swaps the keys of a device for its own in what the first one sees.
    let roster = world.roster();
    let mut other = roster.clone();
    other.devices[3] = client(77).keys();
    assert_ne!(other.session(), roster.session());
    let shares = world.clients[0].share(&other).unwrap();
    let (found, expected) = (other.session(), roster.session());
    let error = ServerError::AnotherSession { found, expected };
    assert_eq!(world.server.shares(Party(0), &shares), Err(error));
}

#[test]
fn a_server_refuses_what_does_not_belong() {
    let (mut world, _) = masked();
    let request = world.server.unmask_request(Party(0)).unwrap();
    let good = world.clients[0].unmask(&request).unwrap();
    let mut short = good.clone();
    short.survivors.pop();
    let error = ServerError::Shares { device: 0, found: 4, expected: 5 };
    assert_eq!(world.server.unmasking(Party(0), &short), Err(error));
    for stranger in [5, 6, 99] {
        let error = ServerError::Stranger(stranger);
        assert_eq!(world.server.unmasking(Party(stranger), &good), Err(error));
    }
    world.server.unmasking(Party(0), &good).unwrap();
    let mut other = good;
    other.survivors[0].0[0] ^= 1;
    let error = ServerError::Contradiction(0);
    assert_eq!(world.server.unmasking(Party(0), &other), Err(error));
    let mut world = World::complete(6);
    let roster = world.roster();
    let good = world.clients[0].share(&roster).unwrap();
    let mut few = good.clone();
    few.sealed.pop();
    let error = ServerError::Shares { device: 0, found: 4, expected: 5 };
    assert_eq!(world.server.shares(Party(0), &few), Err(error));
    let error = ServerError::Shares { device: 1, found: 5, expected: 5 };
    assert_eq!(world.server.shares(Party(1), &good), Err(error));
    assert_eq!(world.server.shares(Party(6), &good), Err(ServerError::Stranger(6)));
    world.server.shares(Party(0), &good).unwrap();
    let changed = Shares { commitment: [0; 32], ..good };
    assert_eq!(world.server.shares(Party(0), &changed), Err(ServerError::Contradiction(0)));
}

#[test]
fn masked_vectors_look_like_noise() {
    let mut world = World::complete(5);
    world.share(&ALL[..5]);
    world.server.close_shares().unwrap();
    let inbox = world.server.inbox(Party(0)).unwrap();
    let masks = world.clients[0].mask(&inbox).unwrap();
    let mut vector = vec![0_u32; 100_000];
    masks.apply(0, &mut vector);
    let ones: u32 = vector.iter().map(|value| value.count_ones()).sum();
    let share = f64::from(ones) / 3_200_000.0;
    assert!((share - 0.5).abs() < 0.002, "{share}");
    assert!(vector.iter().max().unwrap() > &(u32::MAX - 200_000));
}
