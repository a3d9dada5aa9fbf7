//! What a device says of its updates that were not used.

use jobs::device::Telemetry;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_was_not_used_shows_in_what_is_measured() {
    let world = World::new().await;
    let agent = world.join(world.config()).await;
    let id = task("job1", Purpose::Train, 0, TaskWork::Telemetry).id;
    let reason = "invalid_update: \"w\" is not finite".to_owned();
    let told = wire::encode(&Offer::Cancel { task: id, reason: reason.clone(), refused: true });
    for _ in 0..2 {
        world.client.publish("offer.pi", told.clone()).await.unwrap();
    }
    let mut measured = world.listen("fleet.pi.telemetry").await;
    let refusals = loop {
        let telemetry: Telemetry = next_as(&mut measured).await;
        if !telemetry.refusals.is_empty() {
            break telemetry.refusals;
        }
    };
    let [refusal] = &refusals[..] else { panic!("{refusals:?}") };
    assert_eq!(
        (refusal.job.as_str(), refusal.round, &refusal.reason),
        ("job1", RoundNumber(1), &reason)
    );
    let asked = world.ask("cmd.pi.telemetry").await;
    assert_eq!(asked["refusals"][0]["reason"], reason);
    agent.stop().await;
}
