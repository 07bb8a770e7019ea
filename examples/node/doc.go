// Package node holds the smallest follower and the smallest transaction in
// Node.js, with the NATS client as it comes from npm. Its tests run them, with
// the build tag interop.
package node
