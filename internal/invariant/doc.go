// Package invariant has the assertions of a node: statements that are always
// true, and events that must be possible. The code checks each where it is
// established, in production too:
//
//	invariant.TxidsDense.Check(mark == last, mark, last)
//
// A statement that is false is a defect of ours, or a disk that has lost what
// it had synced. Check only reports it: it is logged once, and counted in
// cantus_invariant_violations_total. What must not go on is stopped by the code
// around it, as without the assertion. In tests a violation panics: see package
// testkit.
//
// With the build tag enable_antithesis_sdk, everything is also reported through
// github.com/antithesishq/antithesis-sdk-go/assert, so that a test rig outside
// of the process sees it. Without the tag, a check that passes costs a branch.
// See docs/adr/0034.
//
// It is safe for concurrent use. It knows nothing of the rest of Cantus.
package invariant
