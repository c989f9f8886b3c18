//! Which fields of a flow are sent.

use prost_types::FieldMask;

use crate::proto::flow::Flow;
use crate::proto::observer::GetFlowsResponse;
use crate::proto::observer::get_flows_response::ResponseTypes;

/// Names of fields of a flow; a longer path keeps the whole field that it leads into.
#[derive(Debug, Default)]
pub(crate) struct Mask(Vec<String>);

/// More is no mask of a flow.
const MOST_PATHS: usize = 256;

macro_rules! keep {
    ($mask:expr, $flow:expr, $kept:expr, $($name:literal => $field:ident),* $(,)?) => {
        $(if $mask.iter().any(|path| path == $name) { $kept.$field = $flow.$field; })*
    };
}

impl Mask {
    /// The error names what is no field of a flow.
    pub(crate) fn new(mask: Option<&FieldMask>) -> Result<Self, String> {
        let paths = mask.map_or(&[][..], |mask| &mask.paths);
        if paths.len() > MOST_PATHS {
            return Err(format!("a field mask has more than {MOST_PATHS} paths"));
        }
        let first = |path: &String| path.split('.').next().unwrap_or_default().to_owned();
        let names: Vec<String> = paths.iter().map(first).collect();
        match names.iter().find(|name| !FIELDS.contains(&name.as_str())) {
            Some(name) => Err(format!("{name:?} is no field of a flow")),
            None => Ok(Self(names)),
        }
    }

    /// The answer with these fields only, or with all when none was named.
    pub(crate) fn applied(&self, mut answer: GetFlowsResponse) -> GetFlowsResponse {
        if !self.0.is_empty()
            && let Some(ResponseTypes::Flow(flow)) = answer.response_types
        {
            answer.response_types = Some(ResponseTypes::Flow(self.kept(flow)));
        }
        answer
    }

    fn kept(&self, flow: Flow) -> Flow {
        let mut kept = Flow::default();
        keep!(self.0, flow, kept,
            "time" => time, "uuid" => uuid, "emitter" => emitter, "verdict" => verdict,
            "drop_reason" => drop_reason, "IP" => ip, "l4" => l4, "source" => source, "destination" => destination,
            "Type" => r#type, "node_name" => node_name, "node_labels" => node_labels, "event_type" => event_type,
            "source_service" => source_service, "destination_service" => destination_service,
            "traffic_direction" => traffic_direction, "trace_observation_point" => trace_observation_point,
            "drop_reason_desc" => drop_reason_desc, "is_reply" => is_reply, "Summary" => summary,
            "extensions" => extensions, "egress_allowed_by" => egress_allowed_by,
            "ingress_allowed_by" => ingress_allowed_by, "egress_denied_by" => egress_denied_by,
            "ingress_denied_by" => ingress_denied_by,
        );
        kept
    }
}

/// Every field of Hubble's flow: those that Sluice never sets may be asked for too.
const FIELDS: [&str; 45] = [
    "time",
    "uuid",
    "emitter",
    "verdict",
    "drop_reason",
    "auth_type",
    "ethernet",
    "IP",
    "l4",
    "tunnel",
    "source",
    "destination",
    "Type",
    "node_name",
    "node_labels",
    "source_names",
    "destination_names",
    "l7",
    "reply",
    "event_type",
    "source_service",
    "destination_service",
    "traffic_direction",
    "policy_match_type",
    "trace_observation_point",
    "trace_reason",
    "file",
    "ip_trace_id",
    "drop_reason_desc",
    "is_reply",
    "debug_capture_point",
    "interface",
    "proxy_port",
    "trace_context",
    "sock_xlate_point",
    "socket_cookie",
    "cgroup_id",
    "Summary",
    "extensions",
    "egress_allowed_by",
    "ingress_allowed_by",
    "egress_denied_by",
    "ingress_denied_by",
    "policy_log",
    "aggregate",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_fields_stay_and_others_go() {
        let mask = |paths: &[&str]| {
            Mask::new(Some(&FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }))
        };
        let flow = Flow { uuid: "1".to_owned(), node_name: "a".to_owned(), verdict: 1, ..Flow::default() };
        let answer = GetFlowsResponse {
            response_types: Some(ResponseTypes::Flow(flow.clone())),
            node_name: "a".to_owned(),
            time: None,
        };
        let kept = |mask: &Mask| match mask.applied(answer.clone()).response_types {
            Some(ResponseTypes::Flow(flow)) => flow,
            other => panic!("{other:?}"),
        };
        assert_eq!(kept(&Mask::new(None).unwrap()), flow);
        let expected = Flow { uuid: "1".to_owned(), ..Flow::default() };
        assert_eq!(kept(&mask(&["uuid", "source.pod_name", "l7"]).unwrap()), expected);
        assert!(mask(&["no_field"]).is_err() && mask(&[""]).is_err());
        assert!(mask(&["uuid"; MOST_PATHS + 1]).is_err());
    }
}
