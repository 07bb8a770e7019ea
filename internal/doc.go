// Package internal holds packages of the product that are not its public API
// (backup, judge and invariant), and what the tests of several folders and the
// benchmark share.
package internal
