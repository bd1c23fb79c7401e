//! How a guest is told of hardware change, and how it answers.
