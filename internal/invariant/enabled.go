//go:build enable_antithesis_sdk

package invariant

// enabled says that checks that pass are reported too.
const enabled = true
