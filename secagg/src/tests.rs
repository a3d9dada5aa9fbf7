//! Whole sessions: sums beside plain sums whatever happens on the way, and what attacks come to.

use std::collections::BTreeSet;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use super::*;

mod attacks;
mod flower;

const LENGTH: usize = 37;

/// Devices and a server, and the plain vectors.
struct World {
    server: Server,
    clients: Vec<Client>,
    vectors: Vec<Vec<u32>>,
    random: ChaCha8Rng,
}

/// The last thing that a device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Last {
    Keys,
    Shares,
    Masked,
    All,
}

fn party(index: usize) -> Party {
    Party(u32::try_from(index).unwrap())
}

fn client(number: usize) -> Client {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&(number as u64).to_le_bytes());
    Client::new(Secret::new(seed))
}

impl World {
    /// After the first stage.
    fn new(devices: usize, topology: Topology, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let clients: Vec<Client> = (0..devices).map(client).collect();
        let mut server = Server::new("test".to_owned(), LENGTH as u64, Risk::default());
        let mut order: Vec<usize> = (0..devices).chain(0..devices / 2).collect();
        order.shuffle(&mut random);
        for index in order {
            server.keys(party(index).0, clients[index].keys()).unwrap();
        }
        server.close_keys_with(topology).unwrap();
        let mut vector = || (0..LENGTH).map(|_| random.next_u32()).collect();
        let vectors = (0..devices).map(|_| vector()).collect();
        Self { server, clients, vectors, random }
    }

    fn complete(devices: usize) -> Self {
        let risk = Risk { drop_out: 0.3, colluding: 0.0 };
        Self::new(devices, Topology::complete(devices, risk).unwrap(), 1)
    }

    fn roster(&self) -> Roster {
        self.server.roster().unwrap().clone()
    }

    /// Some of these devices more than once, in any order.
    fn shuffled(&mut self, devices: &[usize]) -> Vec<usize> {
        let mut order: Vec<usize> =
            devices.iter().chain(&devices[..devices.len() / 3]).copied().collect();
        order.shuffle(&mut self.random);
        order
    }

    fn share(&mut self, devices: &[usize]) {
        let roster = self.roster();
        for index in self.shuffled(devices) {
            let shares = self.clients[index].share(&roster).unwrap();
            self.server.shares(party(index), &shares).unwrap();
        }
    }

    /// The sum of the masked vectors.
    fn mask(&mut self, devices: &[usize]) -> Vec<u32> {
        let (mut sum, mut counted) = (vec![0; LENGTH], BTreeSet::new());
        for index in self.shuffled(devices) {
            let inbox = self.server.inbox(party(index)).unwrap();
            let Ok(masks) = self.clients[index].mask(&inbox) else { continue };
            let mut vector = self.vectors[index].clone();
            masks.apply(0, &mut vector);
            assert_ne!(vector, self.vectors[index]);
            if counted.insert(index) {
                add(&mut sum, &vector);
                self.server.masked(party(index)).unwrap();
            }
        }
        sum
    }

    fn unmask(&mut self, devices: &[usize]) {
        for index in self.shuffled(devices) {
            // A device that is itself badly off has refused before.
            let Some(request) = self.server.unmask_request(party(index)) else { continue };
            let Ok(unmasking) = self.clients[index].unmask(&request) else { continue };
            self.server.unmasking(party(index), &unmasking).unwrap();
        }
    }

    fn plain_sum(&self, devices: &[usize]) -> Vec<u32> {
        let mut sum = vec![0; LENGTH];
        for index in devices {
            add(&mut sum, &self.vectors[*index]);
        }
        sum
    }

    fn masked_by(&self) -> Vec<usize> {
        let all = 0..self.clients.len();
        all.filter(|index| self.server.unmask_request(party(*index)).is_some()).collect()
    }
}

fn until(last: &[Last], at_least: Last) -> Vec<usize> {
    (0..last.len()).filter(|index| last[*index] >= at_least).collect()
}

/// The sum of those who sent masked vectors, and the plain one.
fn run(world: &mut World, last: &[Last]) -> Result<(Vec<u32>, Vec<u32>), ServerError> {
    world.share(&until(last, Last::Shares));
    world.server.close_shares()?;
    let mut sum = world.mask(&until(last, Last::Masked));
    world.server.close_masked()?;
    let in_sum = world.masked_by();
    world.unmask(&until(last, Last::All));
    world.server.finish()?.apply(0, &mut sum);
    Ok((sum, world.plain_sum(&in_sum)))
}

/// What each device does last: at most three of ten drop out.
fn lasts(devices: usize, dropped: usize) -> impl Strategy<Value = Vec<Last>> {
    let stage = prop::sample::select(vec![Last::Keys, Last::Shares, Last::Masked]);
    let all: Vec<usize> = (0..devices).collect();
    let who = prop::sample::subsequence(all, dropped);
    (who, prop::collection::vec(stage, dropped)).prop_map(move |(who, stages)| {
        let mut lasts = vec![Last::All; devices];
        who.into_iter().zip(stages).for_each(|(index, stage)| lasts[index] = stage);
        lasts
    })
}

fn complete_session() -> impl Strategy<Value = (Vec<Last>, u64)> {
    (4..14_usize)
        .prop_flat_map(|devices| (Just(devices), 0..=devices * 3 / 10))
        .prop_flat_map(|(devices, dropped)| (lasts(devices, dropped), any::<u64>()))
}

fn sparse_session() -> impl Strategy<Value = (Vec<Last>, usize, u64)> {
    (12..24_usize, 2..5_usize)
        .prop_flat_map(|(devices, half)| (Just(devices), Just(half), 0..=devices * 3 / 10))
        .prop_flat_map(|(devices, half, dropped)| {
            (lasts(devices, dropped), Just(half), any::<u64>())
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Where everyone is everyone's neighbour, three of ten may drop out at any stage.
    #[test]
    fn the_sum_is_that_of_the_plain_vectors((last, seed) in complete_session()) {
        let risk = Risk { drop_out: 0.3, colluding: 0.0 };
        let topology = Topology::complete(last.len(), risk).unwrap();
        let mut world = World::new(last.len(), topology, seed);
        let (found, expected) = run(&mut world, &last).unwrap();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(world.masked_by(), until(&last, Last::Masked));
    }

    /// With few neighbours a session may fail, and then says why; it never gives another sum.
    #[test]
    fn a_sparse_graph_gives_the_sum_or_says_why_not((last, half, seed) in sparse_session()) {
        let topology = Topology { degree: 2 * half, threshold: half + 1 };
        let mut world = World::new(last.len(), topology, seed);
        match run(&mut world, &last) {
            Ok((found, expected)) => prop_assert_eq!(found, expected),
            Err(ServerError::TooFew { found, threshold, .. }) => prop_assert!(found < threshold),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}

/// What each device says by yes or no comes as the number of those in the sum who said yes.
#[test]
fn a_count_is_of_those_in_the_sum() {
    let mut world = World::complete(10);
    for (index, vector) in world.vectors.iter_mut().enumerate() {
        vector[LENGTH - 1] = u32::from(index % 3 != 0);
    }
    let mut last = [Last::All; 10];
    (last[1], last[5], last[6]) = (Last::Keys, Last::Shares, Last::Masked);
    let (sum, _) = run(&mut world, &last).unwrap();
    // Of 0, 2, 3, 4, 6, 7, 8 and 9.
    assert_eq!(count(sum[LENGTH - 1], 8), 4);
}

#[test]
fn a_graph_of_the_bounds_bears_three_of_ten_that_drop_out() {
    let devices = 120;
    let topology = Topology::of(devices, Risk::default()).unwrap();
    assert!(topology.degree < devices - 1, "{topology:?}");
    let mut world = World::new(devices, topology, 3);
    let stages = [Last::Keys, Last::Shares, Last::Masked];
    let last: Vec<Last> = (0..devices)
        .map(|index| if index % 10 < 3 { stages[index % 10] } else { Last::All })
        .collect();
    let (found, expected) = run(&mut world, &last).unwrap();
    assert_eq!(found, expected);
    assert_eq!(world.masked_by().len(), 96);
}

#[test]
fn below_the_threshold_a_session_fails_and_says_so() {
    for (last, missing) in [(Last::Keys, 6), (Last::Shares, 6), (Last::Masked, 6)] {
        let mut world = World::complete(10);
        let mut lasts = vec![Last::All; 10];
        lasts[..missing].fill(last);
        let error = run(&mut world, &lasts).unwrap_err();
        let ServerError::TooFew { found, threshold: 5, .. } = error else { panic!("{error:?}") };
        assert!(found < 5);
        assert!(error.to_string().contains("neighbours are left, 5 are needed"), "{error}");
    }
}

#[test]
fn a_server_knows_when_enough_have_answered() {
    let mut world = World::complete(10);
    let all: Vec<usize> = (0..10).collect();
    world.share(&all);
    world.server.close_shares().unwrap();
    let mut sum = world.mask(&all);
    world.server.close_masked().unwrap();
    world.unmask(&[0, 1, 2, 3, 4]);
    // Each of those lacks its own share, so that four are left for it.
    assert!(!world.server.is_complete());
    world.unmask(&[7]);
    assert!(world.server.is_complete());
    world.server.finish().unwrap().apply(0, &mut sum);
    assert_eq!(sum, world.plain_sum(&all));
}

#[test]
fn a_client_that_is_made_anew_says_the_same() {
    let mut world = World::complete(5);
    let all: Vec<usize> = (0..5).collect();
    let roster = world.roster();
    world.share(&all);
    let mut anew = client(2);
    assert_eq!(anew.keys(), world.clients[2].keys());
    assert_eq!(anew.share(&roster), world.clients[2].share(&roster));
    world.server.close_shares().unwrap();
    let sum = world.mask(&all);
    let (mut one, mut other) = (sum.clone(), sum);
    let inbox = world.server.inbox(Party(2)).unwrap();
    anew.mask(&inbox).unwrap().apply(0, &mut one);
    world.clients[2].mask(&inbox).unwrap().apply(0, &mut other);
    assert_eq!(one, other);
    world.server.close_masked().unwrap();
    let request = world.server.unmask_request(Party(2)).unwrap();
    assert_eq!(anew.unmask(&request), world.clients[2].unmask(&request));
}

fn again<T: serde::Serialize + serde::de::DeserializeOwned>(message: &T) -> T {
    serde_json::from_str(&serde_json::to_string(message).unwrap()).unwrap()
}

#[test]
fn messages_survive_as_json() {
    let mut world = World::complete(4);
    let all = [0, 1, 2, 3];
    let roster = world.roster();
    assert_eq!(again(&roster), roster);
    let shares = world.clients[0].share(&roster).unwrap();
    assert_eq!(again(&shares), shares);
    world.share(&all);
    world.server.close_shares().unwrap();
    let inbox = world.server.inbox(Party(0)).unwrap();
    assert_eq!(again(&inbox), inbox);
    world.mask(&all);
    world.server.close_masked().unwrap();
    let request = world.server.unmask_request(Party(0)).unwrap();
    assert_eq!(again(&request), request);
    let unmasking = world.clients[0].unmask(&request).unwrap();
    assert_eq!(again(&unmasking), unmasking);
}
