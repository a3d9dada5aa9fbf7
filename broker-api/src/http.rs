//! The HTTP face: routes, bodies and problems; holds no rule of its own.
