// Package node holds the smallest follower and the smallest transaction in
// Node.js, with the NATS client as it comes from npm. The client needs Node.js 22
// or newer; older versions are warned of by npm (EBADENGINE). In this directory,
// beside a node that runs:
//
//	npm ci
//	node follow.mjs nats://127.0.0.1:4222 0
//	node transact.mjs nats://127.0.0.1:4222 visits 1
//
// Its tests run them, with the build tag interop.
package node
