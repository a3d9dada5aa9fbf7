use models::artifact::Lineage;

use super::*;
use crate::testing::{World, id};

/// Each of two owners of a training has found that its result is not registered: one was suspended
/// just then.
#[tokio::test]
async fn a_result_is_registered_once_however_many_owners_try() {
    let world = World::new().await;
    let (first, second) = (world.broker().await, world.broker().await);
    let job: JobId = id("j1");
    let lineage = Lineage {
        job: job.to_string(),
        dataset: "tiny".to_owned(),
        began_with: None,
        rounds: 1,
        devices: Vec::new(),
        accuracy: None,
    };
    let config = ModelConfig { lineage: Some(lineage), ..ModelConfig::default() };
    let add = async |registry: &Registry, numbering: Numbering<'_>, bytes: &'static [u8]| {
        let bytes = Bytes::from_static(bytes);
        registry.add(&id("m"), numbering, bytes, None, None, config.clone()).await.unwrap()
    };
    let [one, other] = [&first, &second].map(|broker| &broker.core.registry);
    let registered = add(one, Numbering::OnceFor(&job), b"model").await;
    other.read_all().await.unwrap();
    let again = add(other, Numbering::OnceFor(&job), b"model").await;
    assert_eq!(again, registered);
    let versions = other.list().len();
    assert_eq!(versions, 1);
    // What people register under the same job's name is theirs.
    let pushed = add(other, Numbering::Next, b"another").await;
    assert_eq!(pushed.reference.version.as_str(), "2");
}

/// The newest first, as numbers and not as text.
#[tokio::test]
async fn an_unknown_version_is_told_with_the_newest_ones() {
    let world = World::new().await;
    let broker = world.broker().await;
    let registry = &broker.core.registry;
    for number in 1..=12_u8 {
        let (bytes, config) = (Bytes::from(vec![number]), ModelConfig::default());
        registry.add(&id("m"), Numbering::Next, bytes, None, None, config).await.unwrap();
    }
    let error = registry.find(&"m:99".parse().unwrap()).await.unwrap_err();
    assert_eq!(error.detail, "model m has no version 99");
    assert_eq!(error.hint, "its versions are: 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, ...");
}

/// Bytes and what is said of them are told apart.
#[tokio::test]
async fn a_version_that_is_registered_otherwise_says_what_differs() {
    let world = World::new().await;
    let broker = world.broker().await;
    let registry = &broker.core.registry;
    let add = async |bytes: &'static [u8], label: &str| {
        let config = ModelConfig { labels: vec![label.to_owned()], ..ModelConfig::default() };
        let (version, bytes) = (Numbering::Exactly(id("1")), Bytes::from_static(bytes));
        registry.add(&id("m"), version, bytes, None, None, config).await
    };
    let registered = add(b"model", "cat").await.unwrap();
    assert_eq!(add(b"model", "cat").await.unwrap(), registered);
    for (bytes, label, expected) in [
        (
            &b"model"[..],
            "dog",
            "version m:1 is registered with other labels, description or config",
        ),
        (b"other", "cat", "version m:1 is registered with other bytes"),
    ] {
        let error = add(bytes, label).await.unwrap_err();
        assert_eq!((error.code, error.detail.as_str()), (ApiCode::Conflict, expected));
    }
}
