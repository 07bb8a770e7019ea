// Package node contains the smallest follower, the smallest transaction and the
// smallest decision without a view in Node.js, with the NATS client from npm.
// Node.js 20 works, although npm warns that the client requires 22 or newer
// (EBADENGINE). In this directory, with a node running:
//
//	npm ci
//	node follow.mjs nats://127.0.0.1:4222 0
//	node transact.mjs nats://127.0.0.1:4222 visits 1
//	node courses.mjs nats://127.0.0.1:4222 define go 2
//	node courses.mjs nats://127.0.0.1:4222 enroll go alice
//
// decide.mjs is the Decide of the Go client in 40 lines, and token.mjs is its
// subjects.Token.
//
// Its tests run them, with the build tag interop.
package node
