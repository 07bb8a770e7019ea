// Package backup keeps copies of a cluster's logs in a directory or a bucket of
// an object store.
//
// Its main types:
//
//   - [Repository]: where the backup is. It holds segments and manifests.
//   - [Manifest]: which segments make up the logs, with their digests and the
//     cursors. The newest one is the backup.
//   - [Source]: the cluster whose logs are backed up.
//
// A backup has the batches of the log as they are there, so the digest chain of
// a log is that of its backup too, and every check is made against digests that
// the cluster itself computed (docs/adr/0035).
//
// When [Repository.Run] returns nil, everything that was committed before the
// call is in the backup. Whatever happens before, the newest manifest is
// complete: segments are never changed, a manifest appears whole, and what it
// names is stored before it. In a directory all of that survives power loss.
//
// The package assumes that what is stored is returned as it was, and detects it
// if it is not: the error wraps [ErrDamaged] and names the object. It does not
// assume that only one process writes. Of two that extend the same manifest one
// wins, and the other begins again from there.
//
// A Repository is used by one goroutine at a time.
//
// # Objects
//
//	manifest/<generation>.json        decimal, 16 digits
//	p<partition>/<first>-<last>-<hash>.seg
//
// A manifest is JSON, and a last line with the SHA-256 of all before it, in
// hexadecimal. The one of the highest generation counts.
//
// A segment is compressed by zstd:
//
//	offset  size
//	     0     8  "cantseg" and the version, 1
//	              batches, each:
//	                uv  its length
//	                    the batch, as package wal encodes it
//
// first and last are txids of 20 digits, and hash is the beginning of the
// stored bytes' SHA-256: two segments with one name are the same.
//
// # Merging and deleting
//
// A segment has up to 64 MiB before compression. Runs add small ones: once
// there are eight of about a size at the end, they are merged. So a partition
// has few small ones, and a byte is written again few times. The ten newest
// manifests are kept. An object that none of them names is deleted if it is
// older than a day: another process may be about to name it.
package backup
