"""Where does a deep model first turn NaN, do its statistics tell of it ahead, and which of the notes' remedies mend it?"""
