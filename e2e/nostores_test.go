//go:build !stores

package e2e_test

// buildTags are the tags that the program is built with. Programs start in half
// the time without the libraries of object stores.
const buildTags = "nocloud"
