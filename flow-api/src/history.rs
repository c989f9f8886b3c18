//! Flows of the past: from the store, or from what the hub keeps where there is none.

use std::path::PathBuf;

use audit::{ReadStoreError, StoreQuery};

use crate::filter::Wanted;
use crate::flow;
use crate::hub::Hub;
use crate::proto::observer::GetFlowsResponse;
use crate::proto::observer::get_flows_response::ResponseTypes;

/// Where the past is.
#[derive(Clone, Debug)]
pub(crate) struct History {
    hub: Hub,
    store: Option<PathBuf>,
}

/// Which part of it. Times are nanoseconds since 1970, both included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) since: i64,
    pub(crate) until: i64,
    /// The first or the last so many that match; 0 is all.
    pub(crate) number: u64,
    pub(crate) first: bool,
}

impl History {
    pub(crate) fn new(hub: Hub, store: Option<PathBuf>) -> Self {
        Self { hub, store }
    }

    /// Gives what is wanted to `each`, the oldest first, until it wants no more. Nothing is held in memory for it:
    /// where the last so many begin is found first, and then it is read from there. `is_gone` is asked on the way: a
    /// day in which nothing matches is not read for somebody who has left.
    pub(crate) fn read(
        &self,
        part: Part,
        wanted: &Wanted,
        is_gone: impl Fn() -> bool,
        mut each: impl FnMut(GetFlowsResponse) -> bool,
    ) -> Result<(), ReadStoreError> {
        let mut from = None;
        if part.number > 0 && !part.first {
            from = self.begin(part, wanted, &is_gone)?;
            if from.is_none() {
                return Ok(());
            }
        }
        let mut left = if part.number == 0 { u64::MAX } else { part.number };
        let since = from.map_or(part.since, |(time, _)| time);
        self.lines(since, part.until, false, wanted, |line| {
            if is_gone() {
                return false;
            }
            if from.is_some_and(|from| flow::place(line).is_some_and(|place| place < from)) {
                return true;
            }
            let Some(told) = flow::told(line, self.hub.cluster()) else { return true };
            if !is_wanted(&told, wanted) {
                return true;
            }
            if is_flow(&told) {
                left -= 1;
            }
            each(told) && left > 0
        })
    }

    /// The place of the first of the last so many flows; `None` when there are none.
    fn begin(
        &self,
        part: Part,
        wanted: &Wanted,
        is_gone: &impl Fn() -> bool,
    ) -> Result<Option<(i64, u64)>, ReadStoreError> {
        let (mut found, mut begin) = (0, None);
        self.lines(part.since, part.until, true, wanted, |line| {
            let told = flow::told(line, self.hub.cluster());
            if told.is_some_and(|told| is_flow(&told) && is_wanted(&told, wanted)) {
                begin = flow::place(line);
                found += 1;
            }
            found < part.number && !is_gone()
        })?;
        Ok(begin)
    }

    /// Lines of a time, in their order or against it; of a store, those at least that are wanted.
    fn lines(
        &self,
        since: i64,
        until: i64,
        newest_first: bool,
        wanted: &Wanted,
        mut each: impl FnMut(&str) -> bool,
    ) -> Result<(), ReadStoreError> {
        if let Some(folder) = &self.store {
            let mut query = StoreQuery { since, until, newest_first, ..StoreQuery::default() };
            wanted.narrow(&mut query);
            return match audit::read_store(folder, &query, each) {
                // Nothing was kept yet.
                Err(ReadStoreError::Empty { .. }) => Ok(()),
                other => other,
            };
        }
        let mut lines: Vec<((i64, u64), Box<str>)> =
            self.hub.kept().into_iter().filter_map(|line| Some((flow::place(&line)?, line))).collect();
        lines.retain(|((time, _), _)| (since..=until).contains(time));
        lines.sort_by_key(|(place, _)| *place);
        if newest_first {
            lines.reverse();
        }
        let _ = lines.iter().all(|(_, line)| each(line));
        Ok(())
    }

    /// The last flows that were live.
    pub(crate) fn recent(&self) -> Vec<GetFlowsResponse> {
        self.hub.kept().iter().filter_map(|line| flow::told(line, self.hub.cluster())).collect()
    }

    /// Flows that can be asked for, and how many there is room for.
    pub(crate) fn room(&self) -> (u64, u64) {
        match &self.store {
            None => self.hub.room(),
            Some(folder) => audit::store_size(folder).map_or((0, 0), |records| (records, records)),
        }
    }

    /// Namespaces with flows since then, in the order of their names.
    pub(crate) fn namespaces(&self, since: i64) -> Result<Vec<String>, ReadStoreError> {
        if let Some(folder) = &self.store {
            return match audit::read_namespaces(folder, since) {
                Err(ReadStoreError::Empty { .. }) => Ok(Vec::new()),
                other => other,
            };
        }
        let mut found = std::collections::BTreeSet::new();
        self.lines(since, i64::MAX, false, &Wanted::default(), |line| {
            if let Some(ResponseTypes::Flow(flow)) =
                flow::told(line, self.hub.cluster()).and_then(|told| told.response_types)
            {
                found.extend([flow.source, flow.destination].into_iter().flatten().map(|end| end.namespace));
            }
            true
        })?;
        found.remove("");
        Ok(found.into_iter().collect())
    }
}

/// Losses are told whatever is asked for.
pub(crate) fn is_wanted(told: &GetFlowsResponse, wanted: &Wanted) -> bool {
    match &told.response_types {
        Some(ResponseTypes::Flow(flow)) => wanted.wants(flow),
        _ => true,
    }
}

fn is_flow(told: &GetFlowsResponse) -> bool {
    matches!(told.response_types, Some(ResponseTypes::Flow(_)))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::flow::tests::started;
    use crate::proto::flow::FlowFilter;
    use crate::proto::observer::GetFlowsRequest;

    #[test]
    fn nothing_more_is_read_for_somebody_who_has_left() {
        let hub = Hub::of_test("node-a");
        hub.tell(&(1..=1_000).map(|number| started(number) + "\n").collect::<String>());
        let history = History::new(hub, None);
        let nobody = FlowFilter { source_pod: vec!["none/such".to_owned()], ..FlowFilter::default() };
        let request = GetFlowsRequest { whitelist: vec![nobody], ..GetFlowsRequest::default() };
        let wanted = Wanted::new(&request).unwrap();
        for (number, first) in [(0, false), (5, false), (5, true)] {
            let asked = Cell::new(0);
            let is_gone = || {
                asked.set(asked.get() + 1);
                asked.get() > 10
            };
            let part = Part { since: i64::MIN, until: i64::MAX, number, first };
            history.read(part, &wanted, is_gone, |_| panic!("nothing matches")).unwrap();
            assert_eq!(asked.get(), 11, "number {number}, first {first}");
        }
    }
}
