use std::time::{SystemTime, UNIX_EPOCH};

use jobs::report::FailureCode;
use jobs::spec::LocalTraining;

use super::train::training;
use super::*;
use crate::guards::Guards;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outside_of_its_hours_a_device_declines_at_once() {
    let world = World::new().await;
    let hour = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 3600;
    let hours = format!("{}-{}", (hour + 2) % 24, (hour + 22) % 24).parse().unwrap();
    let guards = Guards { hours: Some(hours), ..Guards::default() };
    let agent = world.join(Config { guards, ..world.config_with_data() }).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let mut reports = world.listen("report.job1.pi").await;
    world.offer(&training(&model, "job1", 1, LocalTraining::default())).await;
    let report = final_report(&mut reports).await.0;
    let ReportBody::Declined(failure) = report.body else { panic!("{report:?}") };
    assert_eq!(failure.code, FailureCode::Guarded);
    assert_eq!(failure.message, format!("it is outside of --guard-hours {hours} (UTC)"));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_stops_when_it_makes_the_device_too_hot() {
    let world = World::new().await;
    let zone = world.dir.path().join("sys/thermal/thermal_zone0");
    std::fs::create_dir_all(&zone).unwrap();
    std::fs::write(zone.join("type"), "oven").unwrap();
    // No sensor of a real machine comes near these.
    let heat = |celsius: u32| std::fs::write(zone.join("temp"), format!("{celsius}000")).unwrap();
    heat(20);
    let sysfs = world.dir.path().join("sys");
    let guards = Guards { temperature_max: Some(400.0), sysfs, ..Guards::default() };
    let agent = world.join(Config { guards, ..world.config_with_data() }).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let mut reports = world.listen("report.job1.pi").await;
    let local = LocalTraining { epochs: 100_000_000, ..LocalTraining::default() };
    world.offer(&training(&model, "job1", 1, local.clone())).await;
    let report: TaskReport = next_as(&mut reports).await;
    assert_eq!(report.body, ReportBody::Accepted);
    loop {
        let report: TaskReport = next_as(&mut reports).await;
        if matches!(report.body, ReportBody::Progress(_)) {
            break;
        }
    }
    heat(500);
    let failure = failure_of(final_report(&mut reports).await.0);
    assert_eq!(failure.code, FailureCode::Guarded);
    let expected = "stopped while training: oven is at 500.0 C, --guard-temperature-max is 400";
    assert_eq!(failure.message, expected);
    world.offer(&training(&model, "job1", 2, local)).await;
    let report = final_report(&mut reports).await.0;
    assert!(matches!(report.body, ReportBody::Declined(_)), "{report:?}");
    agent.stop().await;
}
