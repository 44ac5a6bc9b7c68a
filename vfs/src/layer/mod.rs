//! Decorators: each is a volume over a volume, and works over every kind.
//!
//! A forwarding implementation spells out every method, so that one added to the trait cannot slip past a layer.

pub mod faulty;
pub mod limit;
pub mod retry;
pub mod timetable;
