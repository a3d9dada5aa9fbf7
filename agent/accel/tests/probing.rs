//! What a probe says.

use super::process::{command, onnx_runtime, probe, settings};

#[test]
fn engines_that_work_say_how_fast_they_are() {
    for engine in ["ort-cpu", "webgpu"] {
        let Some(settings) = settings(engine) else { continue };
        let probed = probe(engine, &settings);
        println!("{probed:?}");
        assert_eq!((probed.engine.as_str(), probed.unusable), (engine, None));
        assert!(probed.gflops.unwrap() > 0.01 && probed.library.is_some());
    }
}

#[test]
fn a_missing_library_is_told_with_what_to_do() {
    let probed = probe("ort-cpu", &[("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so".to_owned())]);
    let reason = probed.unusable.unwrap();
    assert!(reason.contains("/nowhere/libonnxruntime.so"), "{reason}");
    // No Python, no home, and nothing beside the program.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("dunlin-accel");
    std::fs::copy(env!("CARGO_BIN_EXE_dunlin-accel"), &program).unwrap();
    let output = std::process::Command::new(&program)
        .args(["probe", "ort-cpu"])
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success());
    let probed: models::engine::frames::Probed = serde_json::from_slice(&output.stdout).unwrap();
    match probed.unusable {
        Some(reason) => assert!(reason.contains("pip install 'onnxruntime'"), "{reason}"),
        None => println!("NOT TESTED: ONNX Runtime is installed for everybody on this machine"),
    }
}

#[test]
fn a_library_is_found_beside_the_program_and_in_an_environment_of_python() {
    let Some(library) = onnx_runtime() else { return };
    let environment = library.ancestors().nth(6).unwrap().display().to_string();
    let probed = probe("ort-cpu", &[("VIRTUAL_ENV", environment)]);
    assert_eq!(probed.unusable, None);
    assert!(probed.library.unwrap().contains(&*library.to_string_lossy()));
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&library, folder.path().join("libonnxruntime.so.1.32.0")).unwrap();
    let libraries = folder.path().display().to_string();
    let probed = probe("ort-cpu", &[("DUNLIN_LIBRARIES", libraries.clone())]);
    assert_eq!(probed.unusable, None);
    assert!(probed.library.unwrap().contains(&libraries));
}

#[test]
fn libraries_that_would_be_loaded_are_named_and_not_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libonnxruntime.so.1.32.0");
    std::fs::write(&file, "no library").unwrap();
    for variable in ["DUNLIN_LIBRARIES", "ORT_DYLIB_PATH"] {
        let value = if variable == "ORT_DYLIB_PATH" { &*file } else { folder.path() };
        let settings = [(variable, value.display().to_string())];
        let output = command(&["libraries"], &settings).output().unwrap();
        assert!(output.status.success());
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.lines().any(|line| line == file.to_str().unwrap()), "{variable}: {said}");
    }
}

/// A result that holds for CUDA depends on what ONNX Runtime loads besides.
#[test]
fn what_cuda_needs_besides_is_named_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let [capi, cudnn, driver] = ["onnxruntime/capi", "nvidia/cudnn/lib", "driver"].map(|name| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    });
    let library = capi.join("libonnxruntime.so.1.32.0");
    let others = [
        capi.join("libonnxruntime_providers_cuda.so"),
        cudnn.join("libcudnn.so.9"),
        driver.join("libcuda.so.1"),
    ];
    others.iter().chain([&library]).for_each(|path| std::fs::write(path, "no library").unwrap());
    let settings = [
        ("ORT_DYLIB_PATH", library.display().to_string()),
        ("LD_LIBRARY_PATH", driver.display().to_string()),
    ];
    let output = command(&["libraries"], &settings).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    for path in &others {
        assert!(said.lines().any(|line| line == path.to_str().unwrap()), "{path:?}: {said}");
    }
    // None of them can be loaded.
    let output = command(&["library"], &settings).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
}

#[test]
fn the_library_that_engines_can_use_is_named() {
    let Some(library) = onnx_runtime() else { return };
    let environment = library.ancestors().nth(6).unwrap().display().to_string();
    let output = command(&["library"], &[("VIRTUAL_ENV", environment)]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, format!("{}\n", library.display()));
}

#[test]
fn a_file_that_is_no_library_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libonnxruntime.so.1.32.0");
    std::fs::write(&file, "no library").unwrap();
    let probed = probe("ort-cpu", &[("ORT_DYLIB_PATH", file.display().to_string())]);
    let reason = probed.unusable.unwrap();
    assert!(reason.contains("libonnxruntime.so.1.32.0"), "{reason}");
}

#[test]
fn software_adapters_are_refused_unless_asked_for() {
    if settings("webgpu").is_none() {
        return;
    }
    let probed = probe("webgpu", &[]);
    match probed.unusable {
        Some(reason) => assert!(reason.contains("DUNLIN_WEBGPU_SOFTWARE=1"), "{reason}"),
        None => println!("NOT TESTED: this machine has a GPU: {:?}", probed.device),
    }
}

#[test]
fn a_machine_without_an_nvidia_gpu_is_told() {
    let probed = probe("cuda", &[]);
    match probed.unusable {
        Some(reason) => assert!(!reason.is_empty(), "{reason}"),
        None => println!("NOT TESTED: this machine has {:?}", probed.device),
    }
}

#[test]
fn a_number_of_threads_that_is_none_is_told() {
    let Some(mut settings) = settings("ort-cpu") else { return };
    settings.push(("DUNLIN_THREADS", "many".to_owned()));
    let reason = probe("ort-cpu", &settings).unusable.unwrap();
    assert!(reason.contains("DUNLIN_THREADS") && reason.contains("many"), "{reason}");
}
