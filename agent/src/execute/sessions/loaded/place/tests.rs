use super::*;

const LONG: Duration = Duration::from_hours(2);

#[test]
fn who_failed_is_tried_again_after_a_while_and_says_when() {
    let now = Instant::now();
    let mut place = Place::new("cuda", false);
    assert!(place.is_open(now) && place.take_trial(now));
    assert!(!place.take_trial(now), "it was asked for");
    place.put(Trial::Failed("out of memory".into()), now);
    assert!(!place.is_open(now) && !place.take_trial(now), "no request waits for it");
    let State::Failed(reason) = place.standing(1, now).state else { panic!("{place:?}") };
    assert!(reason.starts_with("out of memory (it is tried again in "), "{reason}");
    assert!(place.is_open(now + LONG) && place.take_trial(now + LONG));
    let State::Failed(reason) = place.standing(1, now + LONG).state else { panic!("{place:?}") };
    assert_eq!(reason, "out of memory");
    assert!(place.take_trial(now + LONG + TRIAL_LOST), "a trial that was lost");
}

#[test]
fn who_was_not_asked_is_tried_with_the_next_request() {
    let now = Instant::now();
    let mut place = Place::new("cuda", false);
    place.put(Trial::Busy, now);
    assert!(place.is_open(now) && place.take_trial(now));
}

#[test]
fn who_cannot_or_is_wrong_is_not_tried_again() {
    let now = Instant::now();
    for trial in [Trial::Refused("operator Mod".into()), Trial::Wrong("it differs".into())] {
        let mut place = Place::new("cuda", false);
        place.put(trial, now);
        assert!(!place.is_open(now + LONG) && !place.take_trial(now + LONG), "{place:?}");
    }
}

#[test]
fn a_number_of_examples_is_new_until_it_was_answered() {
    let now = Instant::now();
    let mut place = Place::new("webgpu", false);
    place.put(Trial::Busy, now);
    assert!(place.has_seen(1) && !place.has_seen(16));
    // As one that gets many at once.
    place.cpu = true;
    place.answered(16, LONG, now);
    assert!(place.has_seen(16));
    place.put(Trial::Busy, now);
    assert!(!place.has_seen(16), "another session compiles again");
}

#[test]
fn many_examples_take_what_was_measured_and_come_singly_where_they_were_not_compared() {
    let now = Instant::now();
    let millis = Duration::from_millis;
    let session = || {
        let tract = crate::engines::Cpu::find(&crate::engines::Options::default());
        tract.load("native", &models::zoo::build("mlp", [1, 4, 4], 2, 1).unwrap()).unwrap()
    };
    for (batches, most, of_21, of_41) in [
        (Batches::Untried, 1, 210, 410),
        (Batches::Singly, 1, 210, 410),
        (Batches::Whole(None), usize::MAX, 210, 410),
        (Batches::Whole(Some(millis(30))), usize::MAX, 30, 50),
        (Batches::Whole(Some(millis(5))), usize::MAX, 10, 10),
    ] {
        let mut place = Place::new("webgpu", false);
        let session = session();
        place.put(Trial::Well(State::Measured(millis(10)), session.clone()), now);
        assert!(place.uncompared().is_some() && place.take_trial(now) && place.most() == 1);
        place.put_batches(Ok(batches), &session, now);
        assert!(!place.take_trial(now), "not at once again");
        place.answered(1, millis(10), now + TRIAL_LOST);
        assert_eq!(place.take_trial(now + TRIAL_LOST), batches == Batches::Untried);
        let time = |examples| place.standing(examples, now).state;
        assert_eq!(time(1), State::Measured(millis(10)));
        assert_eq!(time(21), State::Measured(millis(of_21)), "{batches:?}");
        assert_eq!(time(41), State::Measured(millis(of_41)), "{batches:?}");
        assert_eq!(place.most(), most);
        assert_eq!(place.has_seen(BATCH as usize), matches!(batches, Batches::Whole(Some(_))));
    }
}

#[test]
fn answers_move_what_was_measured() {
    let now = Instant::now();
    let micros = Duration::from_micros;
    let native = crate::engines::Cpu::find(&crate::engines::Options::default());
    let onnx = models::zoo::build("mlp", [1, 4, 4], 2, 1).unwrap();
    let session = native.load("native", &onnx).unwrap();
    let mut place = Place::new("ort-cpu", false);
    let time = |place: &Place, examples| {
        let state = place.standing(examples, now).state;
        let State::Measured(time) = state else { panic!("{state:?}") };
        time
    };
    place.put(Trial::Well(State::Measured(micros(12_280)), session.clone()), now);
    place.answered(1, micros(240), now);
    assert_eq!(time(&place, 1), micros(240));
    place.answered(3, micros(690), now);
    assert_eq!(time(&place, 1), micros(230), "one after the other");
    place.put_batches(Ok(Batches::Whole(Some(micros(20_230)))), &session, now);
    assert_eq!(time(&place, 41), micros(40_230));
    place.answered(11, micros(1), now);
    assert_eq!(time(&place, 41), micros(40_230), "it may have compiled");
    place.answered(11, micros(2230), now);
    assert_eq!((time(&place, 1), time(&place, 41)), (micros(230), micros(8230)));
    // One of the CPU's was never tried with many.
    let mut place = Place::new("native", true);
    place.put(Trial::Well(State::Measured(micros(100)), session), now);
    assert_eq!(time(&place, 21), micros(2100));
    for _ in 0..2 {
        place.answered(11, micros(600), now);
    }
    assert_eq!((time(&place, 1), time(&place, 21)), (micros(100), micros(1100)));
}

#[test]
fn who_does_not_answer_is_measured_again_after_a_while() {
    let now = Instant::now();
    let native = crate::engines::Cpu::find(&crate::engines::Options::default());
    let onnx = models::zoo::build("mlp", [1, 4, 4], 2, 1).unwrap();
    let session = native.load("native", &onnx).unwrap();
    for cpu in [false, true] {
        let mut place = Place::new("ort-cpu", cpu);
        let time = State::Measured(Duration::from_millis(12));
        place.put(Trial::Well(time, session.clone()), now);
        place.put_batches(Ok(Batches::Whole(None)), &session, now);
        assert!(!place.take_trial(now) && place.take_trial(now + LONG));
        let later = now + LONG;
        place.put_review(Some(Duration::from_millis(1)), Duration::from_millis(5), later);
        assert_eq!(place.state, State::Measured(Duration::from_millis(1)));
        assert!(!place.take_trial(later) && place.take_trial(later + LONG));
        place.put_review(None, Duration::ZERO, later + LONG);
        place.answered(1, Duration::from_millis(1), later + 2 * LONG);
        assert!(!place.take_trial(later + 2 * LONG), "its answers measure it");
        place.state = State::Failed("signal 9".into());
        assert!(!place.is_review_due(later + 9 * LONG));
    }
}

#[test]
fn who_failed_with_many_examples_gets_one_after_the_other_once_it_is_back() {
    let now = Instant::now();
    let native = crate::engines::Cpu::find(&crate::engines::Options::default());
    let onnx = models::zoo::build("mlp", [1, 4, 4], 2, 1).unwrap();
    let session = || native.load("native", &onnx).unwrap();
    let well = || Trial::Well(State::Measured(Duration::from_millis(10)), session());
    let mut place = Place::new("webgpu", false);
    place.put(well(), now);
    let tried = place.session.clone().unwrap();
    place.tried_since = Some(now);
    assert!(place.is_tried());
    place.put_batches(Ok(Batches::Whole(None)), &session(), now);
    assert!(!place.is_tried() && place.most() == 1, "another session was tried");
    place.put_batches(Err(Trial::Failed("signal 9".into())), &tried, now);
    assert!(place.session.is_none() && !place.is_open(now) && place.take_trial(now + LONG));
    place.put(well(), now + LONG);
    assert!(place.most() == 1 && place.uncompared().is_none());
}

#[test]
fn the_cpus_engine_is_open_to_requests_while_it_rests() {
    let now = Instant::now();
    let mut place = Place::new("tract", true);
    place.put(Trial::Failed("signal 9".into()), now);
    assert!(place.is_open(now) && !place.take_trial(now));
}
