use super::*;

fn kind(kind: &'static str, listed: bool, error: Option<&str>) -> KindStatus {
    KindStatus {
        kind,
        served: true,
        listed,
        objects: 3,
        rejected: 0,
        age: listed.then_some(Duration::from_secs(3600)),
        reconnects: 0,
        relists: 0,
        error: error.map(str::to_owned),
        listing: None,
    }
}

fn status(kinds: Vec<KindStatus>) -> ApiStatus {
    let complete = kinds.iter().all(|kind| kind.listed);
    ApiStatus { complete, alive: true, kinds, rejected: Vec::new() }
}

#[test]
fn a_watch_that_hangs_ends_readiness_and_rejected_manifests_do_not() {
    let failing = SourceStatus {
        last_success: SystemTime::now(),
        alive: true,
        failing_since: Some(SystemTime::now()),
        problems: Vec::new(),
    };
    assert_eq!(manifests_condition(&failing), Ok(()));
    let hanging = SourceStatus { alive: false, ..failing };
    assert!(manifests_condition(&hanging).unwrap_err().contains("hangs"));
}

#[test]
fn a_list_that_does_not_end_is_told_before_and_after_the_first() {
    let lasting = |listed, seconds| KindStatus {
        listing: Some(Duration::from_secs(seconds)),
        age: Some(Duration::ZERO),
        ..kind("Pod", listed, None)
    };
    assert_eq!(api_remark(&status(vec![lasting(true, 59)])), None);
    let remark = api_remark(&status(vec![kind("Node", true, None), lasting(true, 75)])).unwrap();
    assert!(remark.contains("Pod listed for 75 s"), "{remark}");
    let missing = api_condition(&status(vec![lasting(false, 75)])).unwrap_err();
    assert!(missing.contains("Pod (for 75 s"), "{missing}");
}

#[test]
fn an_api_server_that_is_gone_is_remarked_and_does_not_end_readiness() {
    let gone = status(vec![kind("Pod", true, Some("connection refused")), kind("Node", true, None)]);
    assert_eq!(api_condition(&gone), Ok(()));
    let remark = api_remark(&gone).unwrap();
    assert!(remark.contains("Pod last heard of 3600 s ago (connection refused)"), "{remark}");
    assert_eq!(api_remark(&status(vec![kind("Pod", true, None)])), None);
}

#[test]
fn a_reason_that_many_kinds_have_is_said_once() {
    let gone = |kind_name, listed, error, age| KindStatus {
        age: Some(Duration::from_secs(age)),
        ..kind(kind_name, listed, Some(error))
    };
    let kinds = |listed| {
        vec![
            gone("Namespace", listed, "refused", 5),
            gone("Pod", listed, "refused", 9),
            gone("Node", listed, "403 Forbidden", 7),
            gone("Service", listed, "refused", 6),
        ]
    };
    assert_eq!(
        api_condition(&status(kinds(false))).unwrap_err(),
        "not listed by the API server yet: Namespace, Pod, Service (refused); Node (403 Forbidden)"
    );
    assert_eq!(
        api_remark(&status(kinds(true))).unwrap(),
        "the last state stays in force: Namespace, Pod, Service last heard of 9 s ago (refused); \
         Node last heard of 7 s ago (403 Forbidden)"
    );
}

#[test]
fn objects_are_counted_once_however_much_is_wrong_with_them() {
    let problem =
        |object: &str| crate::status::Rejected { object: object.to_owned(), problem: String::new() };
    let objects = ["NetworkPolicy/a/b", "NetworkPolicy/a/b", "NetworkPolicy/a/c", "Pod/a/b", ""];
    let source = Source { rejected: objects.map(problem).into(), ..Source::default() };
    let counts: Vec<_> = rejected(&source).into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counts, [("Pod", 1), ("NetworkPolicy", 2)]);
}

#[test]
fn before_everything_was_listed_the_snapshot_is_not_ready() {
    let begun = status(vec![kind("Pod", true, None), kind("Node", false, Some("403 Forbidden"))]);
    let reason = api_condition(&begun).unwrap_err();
    assert_eq!(reason, "not listed by the API server yet: Node (403 Forbidden)");
    let ended = ApiStatus { alive: false, ..status(vec![kind("Pod", true, None)]) };
    assert!(api_condition(&ended).unwrap_err().contains("ended"));
}
