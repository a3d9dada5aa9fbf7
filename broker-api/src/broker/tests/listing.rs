//! Which jobs there are, and what is told of those that are over.

use jobs::subject;

use super::*;

#[tokio::test]
async fn jobs_are_listed_by_when_they_were_accepted_whatever_their_ids() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let mut accepted = Vec::new();
    for own in [None, Some("zebra"), Some("ape"), None, Some("0")] {
        let (spec, binary) = infer_spec();
        accepted.push(broker.submit(spec, binary, own.map(id), None).await.unwrap().id);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    accepted.reverse();
    let mut listed = Vec::new();
    let mut before = None;
    loop {
        let page = broker.jobs(2, before).await.unwrap();
        listed.extend(page.jobs.into_iter().map(|job| job.id));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(listed, accepted);
    // One that is removed between two pages was older than none that are left.
    broker.core.store.jobs.remove(accepted[1].as_str()).await.unwrap();
    let after = broker.jobs(9, Some(accepted[1].clone())).await.unwrap().jobs;
    assert_eq!(
        after.iter().map(|job| &job.id).collect::<Vec<_>>(),
        [&accepted[2], &accepted[3], &accepted[4]]
    );
    let error = broker.jobs(9, Some(id("never"))).await.unwrap_err();
    assert_eq!(error.code, ApiCode::UnknownJob);
}

#[tokio::test]
async fn an_end_that_the_stream_lacks_is_told_once() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let _device = Device::start(&world, "d1").await;
    let (spec, binary) = infer_spec();
    let job = broker.submit(spec, binary, None, None).await.unwrap().id;
    ended(&broker, &job).await;
    let all: Vec<_> = broker.events(&job, 0).await.unwrap().collect().await;
    let [.., before, end] = &all[..] else { panic!("{all:?}") };
    let stream = broker.core.store.stream(subject::STREAM_EVENTS).await.unwrap();
    // The end that is in the record alone has no place in the stream.
    stream.purge().filter(subject::event(&job, "ended")).await.unwrap();
    let told: Vec<_> = broker.events(&job, before.sequence).await.unwrap().collect().await;
    assert_eq!((told.len(), &told[0].body, told[0].sequence), (1, &end.body, 0));
    // When nothing is left of the job, its end stands before everything that is.
    stream.purge().await.unwrap();
    let told: Vec<_> = broker.events(&job, 0).await.unwrap().collect().await;
    assert_eq!((told.len(), &told[0].body), (1, &end.body));
    let again = broker.events(&job, told[0].sequence).await.unwrap();
    assert_eq!(again.collect::<Vec<_>>().await, []);
}
