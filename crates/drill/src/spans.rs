//! An index of intervals, which finds those that overlap a given interval.
//!
//! An hour has hundreds of thousands of runs and hundreds of stops and kills: a scan of all runs for each would be too
//! slow. Pure; used by the evidence.

/// Intervals with their items.
#[derive(Debug)]
pub(super) struct Spans<T> {
    /// Ordered by begin.
    all: Vec<Span<T>>,
}

#[derive(Debug)]
struct Span<T> {
    from: f64,
    until: f64,
    /// The latest end of this and all earlier intervals.
    reach: f64,
    item: T,
}

impl<T> Spans<T> {
    /// Takes `(from, until, item)` in any order.
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

    /// The items that overlap this interval, the latest begin first.
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
    fn overlapping_spans_are_found() {
        let spans = Spans::new([(5.0, 6.0, 'c'), (0.0, 10.0, 'a'), (1.0, 2.0, 'b'), (6.0, f64::INFINITY, 'd')]);
        let found = |from, until| spans.during(from, until).collect::<String>();
        assert_eq!(found(3.0, 4.0), "a");
        assert_eq!(found(2.0, 5.0), "cba");
        assert_eq!(found(11.0, 12.0), "d");
        assert_eq!(found(-2.0, -1.0), "");
        assert_eq!(found(6.0, 6.0), "dca");
    }
}
