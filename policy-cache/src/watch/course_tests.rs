use super::*;

const SHORT: Duration = Duration::from_millis(10);
const LONG: Duration = Duration::from_secs(60);

fn list(from: From, token: Option<&str>, whole: bool) -> Ask {
    Ask::List { from, token: token.map(str::to_owned), whole }
}

fn watch(version: &str) -> Ask {
    Ask::Watch { version: version.to_owned() }
}

fn page(token: Option<&str>, version: &str) -> Outcome {
    Outcome::Page { token: token.map(str::to_owned), version: version.to_owned(), empty: false }
}

const REFUSED: Outcome = Outcome::Refused { retry_after: None };

/// Asks and outcomes in turn: what is asked after each outcome.
fn check(streaming: bool, steps: &[(Ask, Outcome)]) {
    let mut course = Course::new(streaming);
    for (number, (ask, outcome)) in steps.iter().enumerate() {
        assert_eq!(course.ask(), *ask, "step {number}");
        course.after(outcome.clone(), SHORT, 0.5);
    }
}

#[test]
fn pages_follow_one_another_and_then_the_watch_from_where_they_were_true() {
    check(
        false,
        &[
            (list(From::Memory, None, false), page(Some("a"), "7")),
            (list(From::Memory, Some("a"), false), page(Some("b"), "7")),
            (list(From::Memory, Some("b"), false), page(None, "7")),
            (watch("7"), Outcome::Ended),
            (watch("7"), Outcome::Broken),
            (watch("7"), Outcome::Silent),
            (watch("7"), REFUSED),
            (watch("7"), Outcome::Ended),
        ],
    );
}

#[test]
fn a_watch_goes_on_after_the_last_thing_heard() {
    let mut course = Course::new(true);
    assert_eq!(course.ask(), Ask::Stream);
    course.listed("5".to_owned());
    course.heard("9");
    course.heard("");
    course.after(Outcome::Ended, SHORT, 0.5);
    assert_eq!(course.ask(), watch("9"));
}

#[test]
fn after_two_watches_in_a_row_that_bring_nothing_the_server_is_asked_whether_it_has_the_version() {
    for lasted in [SHORT, LONG] {
        let mut course = Course::new(false);
        course.listed("7".to_owned());
        assert_eq!(course.ask(), watch("7"));
        course.after(Outcome::Silent, lasted, 0.5);
        assert_eq!(course.ask(), watch("7"));
        course.heard("8");
        course.after(Outcome::Silent, lasted, 0.5);
        assert_eq!(course.ask(), watch("8"));
        course.after(Outcome::Silent, lasted, 0.5);
        assert_eq!(course.ask(), watch("8"), "the watch before brought something");
        course.after(Outcome::Silent, lasted, 0.5);
        let probe = Ask::Probe { version: "8".to_owned() };
        assert_eq!(course.ask(), probe);
        // No answer, and it is asked again.
        course.after(Outcome::Broken, SHORT, 0.5);
        assert_eq!(course.ask(), probe);
        course.after(Outcome::Probed { reached: true }, SHORT, 0.5);
        assert_eq!(course.ask(), watch("8"));
        for _ in 0..2 {
            course.after(Outcome::Silent, lasted, 0.5);
            course.ask();
        }
        course.after(Outcome::Probed { reached: false }, SHORT, 0.5);
        assert_eq!(course.ask(), list(From::Newest, None, false));
    }
}

#[test]
fn what_has_expired_is_listed_again_at_its_newest() {
    check(
        false,
        &[
            (list(From::Memory, None, false), page(None, "7")),
            (watch("7"), Outcome::Expired),
            (list(From::Newest, None, false), page(Some("a"), "9")),
            // Its pages expire under way: then in one piece.
            (list(From::Newest, Some("a"), false), Outcome::Expired),
            (list(From::Newest, None, true), page(None, "9")),
            (watch("9"), Outcome::Expired),
            (list(From::Newest, None, false), page(None, "9")),
        ],
    );
}

#[test]
fn a_page_that_fails_is_asked_for_again() {
    check(
        false,
        &[
            (list(From::Memory, None, false), page(Some("a"), "7")),
            (list(From::Memory, Some("a"), false), Outcome::Broken),
            (list(From::Memory, Some("a"), false), REFUSED),
            (list(From::Memory, Some("a"), false), page(None, "7")),
            (watch("7"), Outcome::Ended),
        ],
    );
}

#[test]
fn a_server_without_streamed_lists_is_asked_for_pages() {
    check(true, &[(Ask::Stream, Outcome::Invalid), (list(From::Memory, None, false), page(None, "7"))]);
    for outcome in [Outcome::Silent, Outcome::Ended, Outcome::Broken] {
        check(
            true,
            &[
                (Ask::Stream, outcome.clone()),
                (Ask::Stream, outcome),
                (list(From::Memory, None, false), page(None, "7")),
            ],
        );
    }
    // One that is busy is no such server.
    check(
        true,
        &[(Ask::Stream, REFUSED), (Ask::Stream, REFUSED), (Ask::Stream, REFUSED), (Ask::Stream, REFUSED)],
    );
}

#[test]
fn after_what_cannot_be_read_everything_is_listed_again() {
    check(
        false,
        &[
            (list(From::Memory, None, false), page(None, "7")),
            (watch("7"), Outcome::Garbled),
            (list(From::NotOlder("7".to_owned()), None, false), REFUSED),
            // The server may never have that version.
            (list(From::Newest, None, false), page(None, "3")),
            (watch("3"), Outcome::Ended),
        ],
    );
}

#[test]
fn every_failure_makes_the_next_wait_longer_up_to_a_limit() {
    for outcome in [
        REFUSED,
        Outcome::Broken,
        Outcome::Silent,
        Outcome::Garbled,
        Outcome::Expired,
        Outcome::Invalid,
        Outcome::Ended,
        Outcome::NotServed,
    ] {
        for streaming in [false, true] {
            let mut course = Course::new(streaming);
            let mut last = Duration::ZERO;
            for _ in 0..40 {
                course.ask();
                let wait = course.after(outcome.clone(), SHORT, 1.0);
                assert!(wait >= last && wait >= FIRST_WAIT && wait <= LONGEST_WAIT, "{outcome:?} {wait:?}");
                last = wait;
            }
            assert_eq!(last, LONGEST_WAIT, "{outcome:?}");
        }
    }
}

#[test]
fn lists_that_succeed_between_failures_make_no_busy_loop() {
    let mut course = Course::new(false);
    let mut waits = Vec::new();
    for _ in 0..40 {
        match course.ask() {
            Ask::List { .. } => assert_eq!(course.after(page(None, "7"), SHORT, 1.0), Duration::ZERO),
            _ => waits.push(course.after(Outcome::Expired, SHORT, 1.0)),
        }
    }
    assert!(waits.len() < 25 && waits.is_sorted() && waits.last() == Some(&LONGEST_WAIT), "{waits:?}");
}

#[test]
fn a_watch_that_ends_early_but_brings_events_waits_less() {
    let mut course = Course::new(false);
    course.ask();
    course.after(page(None, "7"), SHORT, 1.0);
    for _ in 0..20 {
        course.ask();
        course.heard("8");
        let wait = course.after(Outcome::Broken, SHORT, 1.0);
        assert!((FIRST_WAIT..=LONGEST_WAIT_HEARD).contains(&wait), "{wait:?}");
    }
}

#[test]
fn a_stable_watch_is_taken_up_again_soon_and_forgives() {
    let mut course = Course::new(false);
    course.ask();
    course.after(page(None, "7"), SHORT, 1.0);
    for _ in 0..10 {
        course.ask();
        course.after(Outcome::Broken, SHORT, 1.0);
    }
    for outcome in [Outcome::Ended, Outcome::Silent, Outcome::Broken] {
        course.ask();
        assert!(course.after(outcome, LONG, 1.0) <= REOPEN);
    }
    course.ask();
    assert_eq!(course.after(Outcome::Broken, SHORT, 1.0), FIRST_WAIT);
}

#[test]
fn a_server_gets_the_time_it_asks_for_within_reason() {
    for (asked, least, most) in [(0, 0, 1), (20, 20, 25), (86_400, 600, 750)] {
        let mut course = Course::new(false);
        course.ask();
        let retry_after = Some(Duration::from_secs(asked));
        let wait = course.after(Outcome::Refused { retry_after }, SHORT, 1.0);
        assert!((least..=most).contains(&wait.as_secs()), "{asked} {wait:?}");
    }
}

#[test]
fn chance_spreads_the_waits() {
    let wait = |chance| {
        let mut course = Course::new(false);
        course.ask();
        course.after(REFUSED, SHORT, chance)
    };
    assert_eq!(wait(0.0), FIRST_WAIT / 2);
    assert_eq!(wait(1.0), FIRST_WAIT);
}

#[test]
fn pages_without_items_are_asked_for_ever_more_slowly_and_circles_begin_anew_in_one_piece() {
    let mut course = Course::new(false);
    let mut waits = Vec::new();
    for number in 0..6 {
        course.ask();
        let token = Some(number.to_string());
        let page = Outcome::Page { token, version: "7".to_owned(), empty: true };
        waits.push(course.after(page, SHORT, 1.0));
    }
    assert!(waits.is_sorted() && waits[0] >= FIRST_WAIT && waits[5] >= FIRST_WAIT * 32, "{waits:?}");
    check(
        false,
        &[
            (list(From::Memory, None, false), page(Some("a"), "7")),
            (list(From::Memory, Some("a"), false), Outcome::Muddled),
            (list(From::Newest, None, true), page(None, "9")),
        ],
    );
    for length in [1, 2, 3, 7, 50] {
        let mut course = Course::new(false);
        course.ask();
        let pages = (0..1_000).position(|page| course.goes_in_circles(&(page % length).to_string()));
        assert!(pages.is_some_and(|pages| pages < 4 * length + 4), "{length}: {pages:?}");
    }
    let mut course = Course::new(false);
    assert!((0..1_000).all(|page| !course.goes_in_circles(&page.to_string())), "a long list is no circle");
}

#[test]
fn pages_of_different_versions_are_no_list_and_it_is_asked_for_in_one_piece() {
    let mut course = Course::new(false);
    course.ask();
    assert!(!course.is_of_another_list("7"));
    assert!(!course.goes_in_circles("a"));
    course.after(page(Some("a"), "7"), SHORT, 0.5);
    course.ask();
    assert!(!course.is_of_another_list("7"));
    assert!(course.is_of_another_list("8"), "the first page is still as of 7");
    course.after(Outcome::Muddled, SHORT, 0.5);
    assert_eq!(course.ask(), list(From::Newest, None, true));
    assert!(!course.is_of_another_list("8"), "a new list begins");
}

#[test]
fn an_hour_without_the_api_is_a_few_requests_and_the_next_one_is_never_far_away() {
    for outcome in [Outcome::Broken, Outcome::Silent, REFUSED] {
        let mut course = Course::new(true);
        course.listed("7".to_owned());
        let (mut away, mut asked) = (Duration::ZERO, 0);
        while away < Duration::from_secs(3_600) {
            assert_eq!(course.ask(), watch("7"), "what was known is not asked for anew");
            let wait = course.after(outcome.clone(), Duration::ZERO, 0.5);
            assert!(wait <= LONGEST_WAIT, "{wait:?}");
            away += wait;
            asked += 1;
            // Two watches that bring nothing make it ask for the version.
            if outcome == Outcome::Silent && asked % 2 == 0 {
                assert_eq!(course.ask(), Ask::Probe { version: "7".to_owned() });
                away += course.after(Outcome::Probed { reached: true }, Duration::ZERO, 0.5);
            }
        }
        assert!((100..250).contains(&asked), "{outcome:?}: {asked}");
    }
}
