//! Data sets that users bring: folders of pictures and tables.

use std::path::Path;

use serde_json::json;
use tests::data::Digits;
use tests::world::World;

use crate::story::{ask_picture, assert_problem, best};

fn run(world: &World, arguments: &[&str]) -> String {
    let output = world.dunlin(arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A folder for each class is split, trained on with random changes and the mean of all devices,
/// and asked about with pictures that no device had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_pictures_is_trained_on() {
    let world = World::start().await;
    let pictures = Digits::write(world.folder(), 1).held_out();
    let (from, out) = (world.folder().join("pictures"), world.folder().join("shares"));
    let (known, asked) = pictures.split_at(300);
    for (path, class) in known {
        let folder = from.join(format!("digit-{class}"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(path, folder.join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(from.join("dataset.toml"), "size = 8\nchannels = 1\n").unwrap();
    let text = run(&world, &["data", "describe", from.to_str().unwrap()]);
    assert!(text.starts_with("image_folder: examples of shape [1, 8, 8], 10 classes"), "{text}");
    assert!(text.contains("digit-7"), "{text}");
    let split = ["data", "split", "--devices", "2", "--held-out", "0", "--partition", "iid"];
    let paths = ["--from", from.to_str().unwrap(), "--out", out.to_str().unwrap()];
    run(&world, &[&split[..], &paths[..]].concat());
    let mut agents = Vec::new();
    for number in 1..=2 {
        let (name, share) = (format!("device-{number}"), out.join(format!("device-{number}")));
        agents.push(world.join(&name, Some(("pictures", &share))).await);
    }
    let device = world.get("/v1/devices/device-1").await.body;
    let facts = &device["hello"]["datasets"][0];
    assert_eq!((&facts["format"], &facts["shape"]), (&json!("image_folder"), &json!([1, 8, 8])));
    assert_eq!(facts["labels"][7], "digit-7");
    assert_eq!(facts["train_class_counts"].as_array().unwrap().len(), 10);

    let train = ["train", "--dataset", "pictures", "--model", "lenet", "--rounds", "12"];
    let how = ["--epochs", "3", "--augment", "pad_crop", "--normalization", "dataset"];
    run(&world, &[&train[..], &how[..]].concat());
    let mut right = 0;
    for (picture, class) in asked {
        let answer = ask_picture(&world, "lenet", picture).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        right += usize::from(best(&answer.body) == u64::from(*class));
    }
    assert!(right * 10 >= asked.len() * 7, "{right} of {} are right", asked.len());
}

/// Rows `x, y, kind`: `big` where x is above 1000; y says nothing and is tiny.
fn write_table(path: &Path, from: u32, to: u32) {
    let row = |x: u32| {
        let kind = if x > 1000 { "big" } else { "small" };
        format!("{x},{:e},{kind}\n", f64::from(x * 7 % 11) * 1e-4)
    };
    let rows: String = (from..to).step_by(10).map(row).fold(String::new(), |all, row| all + &row);
    std::fs::write(path, "x,y,kind\n".to_owned() + &rows).unwrap();
}

/// Devices with different ranges of a table learn one boundary; who asks gives numbers as they
/// are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_trained_on() {
    let world = World::start().await;
    let mut agents = Vec::new();
    for (number, (from, to)) in [(0, 1300), (700, 2000)].into_iter().enumerate() {
        let name = format!("device-{}", number + 1);
        let path = world.folder().join(format!("{name}.csv"));
        write_table(&path, from, to);
        agents.push(world.join(&name, Some(("sizes", &path))).await);
    }
    let device = world.get("/v1/devices/device-2").await.body;
    let facts = &device["hello"]["datasets"][0];
    assert_eq!((&facts["format"], &facts["shape"]), (&json!("csv"), &json!([2])));
    assert_eq!(facts["labels"], json!(["big", "small"]));
    let job = |local| {
        json!({"kind": "train", "spec": {"model": "mlp", "dataset": "sizes", "rounds": 20,
            "local": local}})
    };
    let local = json!({"epochs": 2, "batch_size": 16, "normalization": "dataset"});
    let id = world.submit(&job(local)).await;
    let record = world.ended(&id).await;
    assert_eq!(record["state"], "succeeded", "{record:#}");
    let client = world.client().await;
    for (x, kind) in [(100.0, "small"), (850.0, "small"), (1150.0, "big"), (1900.0, "big")] {
        let body = json!({"model": "mlp", "input": [[[[x, 0.0003]]]]}).to_string();
        let message = client.request("jobs.infer", body.into()).await.unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(answer["classes"][0][0]["label"], kind, "{x}: {answer:#}");
    }

    let answer = world.post("/v1/jobs", &job(json!({"augment": ["flip"]}))).await;
    assert_problem(&answer, 400, "invalid_spec");
    assert!(answer.body["detail"].to_string().contains("csv"), "{:#}", answer.body);
}

/// A picture that is none ends the agent with its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_picture_ends_the_agent_with_its_name() {
    let world = World::start().await;
    let folder = world.folder().join("broken");
    std::fs::create_dir_all(folder.join("train/cat")).unwrap();
    std::fs::write(folder.join("train/cat/tom.jpg"), b"\xff\xd8\xff no picture").unwrap();
    let mut command = world.agent_command("broken");
    command.arg("--data").arg(format!("cats={}", folder.display()));
    let mut agent = world.run_agent("broken", command);
    assert_ne!(agent.ended(tests::process::PATIENCE), Some(0), "{}", agent.log());
    assert!(agent.log().contains("train/cat/tom.jpg: picture cannot be"), "{}", agent.log());
}
