package wal

// FindTime returns the txid of the first transaction at or after a time, in
// Unix nanoseconds, among those from txid first to txid last, and last+1 if
// there is none. It searches up to index to: the caller has marked all void
// batches up to there, and knows that the batches up to there hold first to
// last, and that their times never go back. The errors are those of
// [Log.FindTx] and [Log.Entry]; [ErrTrimmed] means that the log was trimmed
// meanwhile.
//
// The search is binary, by txid. Each step looks up one batch.
func (l *Log) FindTime(at int64, first, last, to uint64) (txid uint64, err error) {
	low, high := first, last+1 // the result is from low to high
	for low < high {
		b, err := l.batchOf(low+(high-low)/2, to)
		if err != nil {
			return 0, err
		}
		// The i-th transaction has the time b.Time+i.
		switch after := uint64(at) - uint64(b.Time); {
		case at <= b.Time:
			high = max(b.First, low)
		case after >= uint64(b.Count):
			low = min(b.Last()+1, high)
		default:
			return min(max(b.First+after, low), high), nil
		}
	}
	return low, nil
}

// batchOf returns the header of the batch that holds a txid.
func (l *Log) batchOf(txid, to uint64) (Batch, error) {
	e, err := l.findTx(txid, to)
	if err != nil {
		return Batch{}, err
	}
	b, _ := e.transactions() // findTx has seen that there are some
	return b, nil
}
