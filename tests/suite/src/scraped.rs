//! Prometheus' text format → which families have moved between scrapes.

use std::collections::{BTreeMap, BTreeSet};

/// What several scrapes of one agent tell together.
#[derive(Debug, Default)]
pub struct Scraped {
    types: BTreeMap<String, String>,
    /// The values that each series was seen with, while there are fewer than two.
    values: BTreeMap<String, BTreeSet<String>>,
}

impl Scraped {
    /// Takes in one scrape.
    pub fn add(&mut self, text: &str) {
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|told| told.split_once(' ')) {
                self.types.insert(name.to_owned(), kind.to_owned());
            } else if let Some((series, value)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) {
                let values = self.values.entry(series.to_owned()).or_default();
                if values.len() < 2 {
                    values.insert(value.to_owned());
                }
            }
        }
    }

    /// Every family that was told of.
    pub fn families(&self) -> BTreeSet<String> {
        self.types.keys().cloned().collect()
    }

    /// Families of which a series changed its value.
    pub fn moved(&self) -> BTreeSet<String> {
        let changed = self.values.iter().filter(|(_, values)| values.len() > 1);
        changed.map(|(series, _)| self.family(series)).collect()
    }

    /// The family of a series: its name, without what a histogram adds.
    fn family(&self, series: &str) -> String {
        let name = series.split('{').next().unwrap_or_default();
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
            let family = name.strip_suffix(suffix)?;
            (self.types.get(family)? == "histogram").then(|| family.to_owned())
        });
        of_histogram.unwrap_or_else(|| name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_moves_with_any_of_its_series_and_not_with_time_alone() {
        let text = |count: u32, live: u32| {
            format!(
                "# TYPE a_total counter\na_total{{x=\"1\"}} {count}\na_total{{x=\"2\"}} 0\n\
                 # TYPE b_seconds histogram\nb_seconds_bucket{{le=\"+Inf\"}} {live}\nb_seconds_sum 0\n\
                 # TYPE c gauge\nc 7\n"
            )
        };
        let mut scraped = Scraped::default();
        scraped.add(&text(0, 0));
        scraped.add(&text(0, 0));
        assert_eq!(scraped.moved(), BTreeSet::new());
        scraped.add(&text(1, 2));
        assert_eq!(scraped.moved(), BTreeSet::from(["a_total".to_owned(), "b_seconds".to_owned()]));
        assert_eq!(scraped.families().len(), 3);
    }
}
