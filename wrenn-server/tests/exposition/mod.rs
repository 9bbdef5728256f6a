//! Prometheus' text format 0.0.4, read strictly
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-format-details>).

use std::collections::{BTreeMap, BTreeSet};

/// What was told: each family's type, and each sample's value by its name and labels.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    types: BTreeMap<String, String>,
    samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
}

impl Exposition {
    /// Panics where the text is not what a strict reader takes.
    pub(crate) fn of(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line has no end");
        let (mut this, mut family, mut helped) = (Self::default(), String::new(), BTreeSet::new());
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a help");
                assert!(is_name(name) && !help.is_empty(), "{line}");
                assert!(helped.insert(name.to_owned()), "a second help: {line}");
                name.clone_into(&mut family);
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a type");
                assert_eq!(name, family, "a type follows its help");
                assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
                assert!(this.types.insert(name.to_owned(), kind.to_owned()).is_none(), "a second type: {line}");
            } else {
                this.sample(line, &family);
            }
        }
        this.check_histograms();
        this
    }

    fn sample(&mut self, line: &str, family: &str) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = match series.split_once('{') {
            Some((name, rest)) => (name, labels(rest.strip_suffix('}').expect("the end of the labels"))),
            None => (series, BTreeMap::new()),
        };
        assert!(is_name(name), "{line}");
        let kind = self.types.get(family).expect("a type comes before its samples");
        let is_its = match kind.as_str() {
            "counter" => name == family && name.ends_with("_total"),
            "gauge" => name == family && !name.ends_with("_total"),
            _ => ["_bucket", "_sum", "_count"].iter().any(|end| name.strip_suffix(end) == Some(family)),
        };
        assert!(is_its, "{name} is no {kind} of {family}");
        let value: f64 = value.parse().expect("a number");
        assert!(self.samples.insert((name.to_owned(), labels), value).is_none(), "told twice: {line}");
    }

    /// Buckets grow, and the last one has all.
    fn check_histograms(&self) {
        for (family, _) in self.types.iter().filter(|(_, kind)| *kind == "histogram") {
            for ((_, labels), count) in self.samples.iter().filter(|((name, _), _)| *name == format!("{family}_count"))
            {
                let mut buckets = Vec::new();
                for ((name, of), value) in &self.samples {
                    let mut rest = of.clone();
                    let le = rest.remove("le");
                    if *name == format!("{family}_bucket") && rest == *labels {
                        buckets.push((le.expect("a bound").parse::<f64>().expect("a number"), *value));
                    }
                }
                buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
                assert!(buckets.is_sorted_by(|one, other| one.1 <= other.1), "{family} {labels:?}: {buckets:?}");
                assert_eq!(buckets.last(), Some(&(f64::INFINITY, *count)), "{family} {labels:?}");
            }
        }
    }

    /// The value of one sample; zero where there is none, as Prometheus' `or vector(0)` has it.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.samples.get(&(name.to_owned(), labels)).copied().unwrap_or_default()
    }

    /// Whether there is any sample of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.samples.keys().any(|(is, _)| is == name)
    }

    /// The values that a label has anywhere.
    pub(crate) fn values_of(&self, label: &str) -> BTreeSet<&str> {
        self.samples.keys().filter_map(|(_, labels)| labels.get(label)).map(String::as_str).collect()
    }
}

/// None of the server's label values has a quote, a comma or a backslash in it.
fn labels(text: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for pair in text.split(',') {
        let (name, value) = pair.split_once('=').expect("a label");
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).expect("a value in quotes");
        assert!(is_name(name) && !name.contains(':') && !value.contains(['"', '\\']), "{pair}");
        assert!(all.insert(name.to_owned(), value.to_owned()).is_none(), "{pair} is there twice");
    }
    all
}

fn is_name(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !name.is_empty() && !name.as_bytes()[0].is_ascii_digit() && name.bytes().all(is_word)
}
