//! Spans of time, to be found by a time that they have in common with.
//!
//! An hour has hundreds of thousands of runs and hundreds of stops and kills; whoever asks what went on during one of them must not look at
//! all runs each time. Pure.

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Spans<T> {
    /// In the order of their begins.
    all: Vec<Span<T>>,
}

#[derive(Debug)]
struct Span<T> {
    from: f64,
    until: f64,
    /// The latest end up to here: nothing before has a later one.
    reach: f64,
    item: T,
}

impl<T> Spans<T> {
    /// `from` when, `until` when, what.
    pub(super) fn new(spans: impl IntoIterator<Item = (f64, f64, T)>) -> Self {
        let span = |(from, until, item)| Span { from, until, reach: until, item };
        let mut all: Vec<Span<T>> = spans.into_iter().map(span).collect();
        all.sort_by(|one, other| one.from.total_cmp(&other.from));
        let mut reach = f64::NEG_INFINITY;
        for span in &mut all {
            reach = reach.max(span.until);
            span.reach = reach;
        }
        Self { all }
    }

    /// What has a moment in common with this time, the last begun first.
    pub(super) fn during(&self, from: f64, until: f64) -> impl Iterator<Item = &T> {
        let begun = self.all.partition_point(|span| span.from <= until);
        let near = self.all.get(..begun).unwrap_or_default().iter().rev().take_while(move |span| span.reach >= from);
        near.filter(move |span| span.until >= from).map(|span| &span.item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shares_a_moment_is_found() {
        let spans = Spans::new([(5.0, 6.0, 'c'), (0.0, 10.0, 'a'), (1.0, 2.0, 'b'), (6.0, f64::INFINITY, 'd')]);
        let found = |from, until| spans.during(from, until).collect::<String>();
        assert_eq!(found(3.0, 4.0), "a");
        assert_eq!(found(2.0, 5.0), "cba");
        assert_eq!(found(11.0, 12.0), "d");
        assert_eq!(found(-2.0, -1.0), "");
        assert_eq!(found(6.0, 6.0), "dca");
    }
}
