-- What: takes the parent's lock before the partition's: the order everybody keeps.
LOCK TABLE {points} IN ACCESS EXCLUSIVE MODE
