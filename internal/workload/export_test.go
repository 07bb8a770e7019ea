package workload

// What the tests of the package use of its inside.
var (
	AppendFrame       = appendFrame
	SentTransaction   = sentTransaction
	StoredTransaction = storedTransaction
)
