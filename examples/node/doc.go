// Package node contains the smallest follower and the smallest transaction in
// Node.js, with the NATS client from npm. Node.js 20 works, although npm warns
// that the client requires 22 or newer (EBADENGINE). In this directory, with a
// node running:
//
//	npm ci
//	node follow.mjs nats://127.0.0.1:4222 0
//	node transact.mjs nats://127.0.0.1:4222 visits 1
//
// Its tests run them, with the build tag interop.
package node
